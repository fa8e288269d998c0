//! The ACPI tables of aarch64 against golden files, and against ACPICA's own compiler.
//!
//! A wanted change of the tables: run with `UPDATE_GOLDEN=1` and look at the difference that `iasl -d` shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests, too, may panic

mod iasl;

use std::fs;

use iasl::{accepted, compare_with_golden, fields, split};
use ossature_boot::aarch64::acpi;
use ossature_boot::{
    Cache, Caches, Node, NodeInterrupt, NodeKind, NodeRange, Numa, NumaNode, Platform, RamRange, Trigger,
};

const BASE: u64 = 0x2_0200;

fn memory(base: u64, len: u64) -> NodeRange {
    NodeRange::Memory { base, len }
}

fn node(kind: NodeKind, ranges: Vec<NodeRange>, number: u32, trigger: Trigger) -> Node {
    Node::new(format!("{kind:?}"), kind, ranges, vec![NodeInterrupt::new(number, trigger)])
}

fn gic(cpus: u64) -> Node {
    let ranges = vec![memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, cpus * 0x2_0000)];
    Node::new("gic", NodeKind::GicV3, ranges, Vec::new())
}

/// Of a server's processor: two levels of its own, a third one that all share.
fn caches() -> Caches {
    Caches::new(Cache::new(64 << 10).lines(64, 256), Cache::new(48 << 10).lines(64, 256))
        .own(Cache::new(1 << 20).lines(64, 2048))
        .shared(Cache::new(32 << 20).lines(64, 32768))
}

fn gic_v2() -> Node {
    let ranges = vec![memory(0xf000_0000, 0x1000), memory(0xf001_0000, 0x2000)];
    Node::new("gic", NodeKind::GicV2, ranges, Vec::new())
}

/// One of each kind of device, virtio devices on both sides of 4 GiB.
fn everything() -> Platform {
    let page = |base| vec![memory(base, 0x1000)];
    let nodes = vec![
        gic(3),
        node(NodeKind::Pl011, page(0xd000_0000), 2, Trigger::Level),
        node(NodeKind::VirtioMmio, page(0xd000_2000), 0, Trigger::Edge),
        node(NodeKind::VirtioMmio, page(0x40_0000_0000), 95, Trigger::Level),
        node(NodeKind::VmGenId, page(0xd000_3000), 4, Trigger::Edge),
        node(NodeKind::PowerButton, Vec::new(), 5, Trigger::Edge),
        Node::new("fw-cfg", NodeKind::FwCfg, vec![memory(0xd000_5000, 24)], Vec::new()),
        Node::new("pmu", NodeKind::PmuV3, Vec::new(), Vec::new()),
        Node::new("hidden", NodeKind::Hidden, Vec::new(), Vec::new()),
    ];
    Platform::new(vec![0, 1, 0x100], Vec::new(), nodes).with_caches(Some(caches()))
}

/// The same where the interrupt controller is a GICv2.
fn everything_on_v2() -> Platform {
    let mut platform = everything();
    platform.nodes[0] = gic_v2();
    platform
}

/// A PCI root bus without ports, and an ITS for its messages.
fn pci() -> Platform {
    let its = Node::new("its", NodeKind::GicV3Its, vec![memory(0xf002_0000, 0x2_0000)], Vec::new());
    let ranges = vec![memory(0xd010_0000, 1 << 20), memory(0xd000_4000, 16)];
    let host = node(NodeKind::PciHost, ranges, 6, Trigger::Edge)
        .with_windows([0xe000_0000..=0xefff_ffff, 0x40_0000_0000..=0x4f_ffff_ffff]);
    Platform::new(vec![0, 1], Vec::new(), vec![gic(2), its, host])
}

/// Two NUMA nodes with processors, and one of memory alone.
fn nodes() -> Platform {
    let numa = Numa::new([NumaNode::new(1, 1 << 30), NumaNode::new(2, 1 << 30), NumaNode::new(0, 1 << 30)]);
    Platform::new(vec![0, 1, 0x100], vec![RamRange::new(0, 3 << 30)], vec![gic(3)])
        .with_caches(Some(caches()))
        .with_numa(Some(numa.with_distance(1, 2, 254)))
}

fn tables(platform: &Platform) -> Vec<(String, Vec<u8>)> {
    split(&acpi::tables(platform, BASE, 0x10_0000).unwrap())
}

fn words(platform: &Platform, name: &str) -> String {
    iasl::words(&tables(platform), name)
}

fn contains(source: &str, parts: &[&str]) {
    for part in parts {
        assert!(source.contains(part), "{part} is not in {source}");
    }
}

#[test]
fn tables_are_the_golden_ones() {
    let found = tables(&everything());
    assert_eq!(
        found.iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["rsdp", "dsdt", "facp", "apic", "gtdt", "pptt", "spcr", "dbg2", "xsdt"]
    );
    compare_with_golden("aarch64", &found);
    // It differs in the MADT alone.
    let mut on_v2 = tables(&everything_on_v2());
    on_v2.retain(|(name, _)| name == "apic");
    compare_with_golden("aarch64-gic-v2", &on_v2);
}

#[test]
fn processors_reach_a_gic_v2_in_memory() {
    let madt = words(&everything_on_v2(), "apic");
    contains(&madt, &["Base Address : 00000000F0000000", "Version : 02"]);
    assert_eq!(madt.matches("Base Address : 00000000F0010000").count(), 3, "{madt}");
    assert_eq!(madt.matches("Performance Interrupt : 00000017").count(), 3, "{madt}");
    assert!(!madt.contains("Redistributor]") && !madt.contains("Translator]"), "{madt}");
}

#[test]
fn iasl_accepts_every_table() {
    let dir = tempfile::tempdir().unwrap();
    let bare = |cpus: u32| {
        let ids = (0..cpus).map(|n| (n & 0xf) | (n >> 4) << 8).collect();
        Platform::new(ids, Vec::new(), vec![gic(cpus.into())])
    };
    for (case, platform) in [
        ("everything", everything()),
        ("one", bare(1)),
        ("many", bare(300)),
        ("pci", pci()),
        ("v2", everything_on_v2()),
        ("nodes", nodes()),
    ] {
        let dir = dir.path().join(case);
        fs::create_dir(&dir).unwrap();
        for (name, table) in tables(&platform).iter().filter(|(name, _)| name != "rsdp") {
            accepted(&dir, name, table);
        }
    }
}

#[test]
fn the_dsdt_reads_as_it_is_meant() {
    let source = words(&everything(), "dsdt");
    contains(
        &source,
        &[
            "Device (C002) { Name (_HID, \"ACPI0007\" /* Processor Device */) // _HID: Hardware ID Name (_UID, 0x02)",
            "Device (UAR1) { Name (_HID, \"ARMH0011\")",
            // The interrupt 2 of the device is the GIC's 34.
            "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive, ,, ) { 0x00000022, }",
            "Name (_HID, \"LNRO0005\")",
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000020, }",
            "0x0000004000000000, // Range Minimum 0x0000004000000FFF, // Range Maximum",
            "Name (_HID, EisaId (\"PNP0C0C\")",
            "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000025, }",
            "Notify (PWRB, 0x80)",
            "Name (_CID, \"VM_Gen_Counter\")",
            "Notify (VGEN, 0x80)",
            "Device (FWCF) { Name (_HID, \"QEMU0002\") // _HID: Hardware ID Name (_STA, 0x0B) // _STA: Status \
             Name (_CCA, One)",
            "Memory32Fixed (ReadWrite, 0xD0005000, // Address Base 0x00000018, // Address Length )",
        ],
    );
    assert!(!source.contains("_S5"), "PSCI powers off: {source}");
}

#[test]
fn processors_start_and_the_machine_ends_by_psci() {
    let fadt = words(&everything(), "facp");
    contains(&fadt, &["PSCI Compliant : 1", "Must use HVC for PSCI : 1", "Hardware Reduced (V5) : 1"]);
    contains(&fadt, &["Reset Register Supported (V2) : 0"]);
}

#[test]
fn the_interrupt_controller_knows_each_processor_by_its_affinity() {
    let madt = words(&everything(), "apic");
    assert_eq!(madt.matches("[Generic Interrupt Controller]").count(), 3);
    contains(
        &madt,
        &[
            "ARM MPIDR : 0000000000000100",
            "Performance Interrupt : 00000017",
            "Base Address : 00000000F0000000",
            "Version : 03",
            "Base Address : 00000000F1000000 [140h 0320 4] Length : 00060000",
        ],
    );
}

#[test]
fn timers_are_those_of_the_base_system_architecture() {
    let gtdt = words(&everything(), "gtdt");
    contains(
        &gtdt,
        &[
            "Secure EL1 Interrupt : 0000001D",
            "Non-Secure EL1 Interrupt : 0000001E",
            "Virtual Timer Interrupt : 0000001B",
            "Non-Secure EL2 Interrupt : 0000001A",
            "Always On : 1",
        ],
    );
}

#[test]
fn processors_are_cores_of_one_package() {
    let pptt = words(&everything(), "pptt");
    assert_eq!(pptt.matches("[Processor Hierarchy Node]").count(), 4);
    // Behind what all share.
    assert_eq!(pptt.matches("Parent : 0000003C").count(), 3, "{pptt}");
    assert_eq!(pptt.matches("Physical package : 1").count(), 1);
    contains(&pptt, &["ACPI Processor ID : 00000002"]);
}

#[test]
fn each_processor_has_caches_of_its_own_and_the_package_what_all_share() {
    let pptt = words(&everything(), "pptt");
    assert_eq!(pptt.matches("[Cache Type]").count(), 1 + 3 * 3, "{pptt}");
    // The shared one is the first; the package has it, and no other leads to it.
    contains(
        &pptt,
        &["[024h 0036 1] Subtable Type : 01 [Cache Type]", "Size : 02000000", "Number of Sets : 00008000"],
    );
    contains(
        &pptt,
        &["Physical package : 1", "Private Resource Number : 00000001", "Private Resource : 00000024"],
    );
    assert_eq!(pptt.matches("Next Level of Cache : 00000024").count(), 0, "{pptt}");
    assert_eq!(pptt.matches("Private Resource Number : 00000002").count(), 3, "{pptt}");
    // Data and instructions of the first processor lead to its second level.
    assert_eq!(pptt.matches("Next Level of Cache : 00000054").count(), 2, "{pptt}");
    for (size, sets, ways) in
        [("00010000", "00000100", "04"), ("0000C000", "00000100", "03"), ("00100000", "00000800", "08")]
    {
        assert_eq!(pptt.matches(&format!("Size : {size}")).count(), 3, "{pptt}");
        assert!(pptt.matches(&format!("Number of Sets : {sets}")).count() >= 3, "{pptt}");
        assert_eq!(pptt.matches(&format!("Associativity : {ways} ")).count(), 3, "{pptt}");
    }
}

#[test]
fn unknown_caches_are_not_described_and_impossible_ones_refused() {
    let mut platform = pci();
    assert!(!words(&platform, "pptt").contains("[Cache Type]"));
    // Of which only the size is known; more lines in a set than there is room for.
    platform.caches = Some(Caches::new(Cache::new(4096), Cache::new(256 << 6).lines(64, 1)));
    let pptt = words(&platform, "pptt");
    assert_eq!(pptt.matches("Number of Sets valid : 0").count(), 2, "{pptt}");
    assert_eq!(pptt.matches("Associativity valid : 0").count(), 4, "{pptt}");
    platform.caches = Some(Caches::new(Cache::new(4096), Cache::new(0)));
    let error = acpi::tables(&platform, BASE, 0x10_0000).unwrap_err();
    assert!(error.to_string().contains("of level 1 is none"), "{error}");
}

#[test]
fn the_console_is_the_first_pl011() {
    let spcr = words(&everything(), "spcr");
    contains(&spcr, &["Interface Type : 03", "Address : 00000000D0000000", "Interrupt : 00000022"]);
    let debug = words(&everything(), "dbg2");
    contains(&debug, &["Port Type : 8000", "Port Subtype : 0003", "Namepath : \"\\_SB.UAR1\""]);
    // Without one there is no console.
    let bare = tables(&Platform::new(vec![0], Vec::new(), vec![gic(1)]));
    assert!(bare.iter().all(|(name, _)| name != "spcr" && name != "dbg2"));
}

#[test]
fn a_pci_root_bus_reads_as_it_is_meant() {
    contains(
        &words(&pci(), "dsdt"),
        &[
            "Name (_HID, EisaId (\"PNP0A08\")",
            "Name (_CCA, One) // _CCA: Cache Coherency Attribute",
            "OperationRegion (PCHP, SystemMemory, 0xD0004000, 0x10)",
            "0xE0000000, // Range Minimum 0xEFFFFFFF, // Range Maximum",
            "Memory32Fixed (ReadWrite, 0xD0100000, // Address Base 0x00100000, // Address Length )",
            "Memory32Fixed (ReadWrite, 0xD0004000, // Address Base 0x00000010, // Address Length )",
            "{ 0x00000026, }",
            "If ((Local0 & 0x02)) { Notify (S001, One) // Device Check }",
        ],
    );
    contains(&words(&pci(), "mcfg"), &["Base Address : 00000000D0100000", "End Bus Number : 00"]);
    contains(&words(&pci(), "apic"), &["[Generic Interrupt Translator]", "Base Address : 00000000F0020000"]);
    contains(
        &words(&pci(), "iort"),
        &[
            "ItsCount : 00000001",
            "Cache Coherency : 00000001",
            "ID Count : 000000FF",
            "Output Reference : 00000030",
        ],
    );
    let mut without = pci();
    without.nodes.retain(|node| node.kind != NodeKind::GicV3Its);
    assert!(tables(&without).iter().all(|(name, _)| name != "iort"));
}

#[test]
fn the_processors_of_a_numa_node_are_a_package() {
    let srat = words(&nodes(), "srat");
    assert_eq!(fields(&srat, "Acpi Processor UID"), [0, 1, 2]);
    assert_eq!(fields(&srat, "Proximity Domain"), [0, 1, 1, 0, 1, 2], "of processors and of memory: {srat}");
    assert_eq!(fields(&srat, "Enabled"), [1; 6]);
    contains(&words(&nodes(), "slit"), &["Locality 1 : 14 0A FE"]);
    let pptt = words(&nodes(), "pptt");
    assert_eq!(fields(&pptt, "Physical package"), [1, 0, 1, 0, 0]);
    let parents = fields(&pptt, "Parent");
    assert_eq!((parents[0], parents[2], parents[3]), (0, 0, parents[4]));
    assert!(parents[1] > 0 && parents[1] < parents[3], "{pptt}");
    // A third level for each.
    assert_eq!(fields(&pptt, "Size").iter().filter(|&&size| size == 32 << 20).count(), 2, "{pptt}");
}
