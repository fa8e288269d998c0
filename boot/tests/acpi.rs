//! The ACPI tables against golden files, and against ACPICA's own compiler.
//!
//! A wanted change of the tables: run with `UPDATE_GOLDEN=1` and look at the difference that `iasl -d` shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests, too, may panic

mod iasl;

use std::fs;

use iasl::{accepted, compare_with_golden, fields, split, words};
use ossature_boot::x86_64::acpi;
use ossature_boot::{Node, NodeInterrupt, NodeKind, NodeRange, Numa, NumaNode, Platform, RamRange, Trigger};

const BASE: u64 = 0xe_0000;

fn node(kind: NodeKind, ranges: Vec<NodeRange>, edges: Vec<u32>) -> Node {
    let interrupts = edges.into_iter().map(|number| NodeInterrupt::new(number, Trigger::Edge)).collect();
    Node::new(format!("{kind:?}"), kind, ranges, interrupts)
}

fn io(base: u16, len: u16) -> NodeRange {
    NodeRange::Io { base, len }
}

/// One of each kind of device, and virtio devices on both sides of 4 GiB.
fn everything() -> Platform {
    let virtio =
        |base, gsi| node(NodeKind::VirtioMmio, vec![NodeRange::Memory { base, len: 0x1000 }], vec![gsi]);
    let nodes = vec![
        node(NodeKind::Serial16550, vec![io(0x3f8, 8)], vec![4]),
        node(NodeKind::Rtc, vec![io(0x70, 2)], vec![8]),
        node(NodeKind::I8042, vec![io(0x60, 1), io(0x64, 1)], vec![1]),
        virtio(0xd000_0000, 5),
        virtio(0xd000_1000, 6),
        virtio(0x40_0000_0000, 23),
        node(NodeKind::AcpiPower, vec![io(0x600, 3)], vec![9]),
        node(NodeKind::Pvpanic, vec![io(0x505, 1)], vec![]),
    ];
    Platform::new(vec![0, 1, 2, 300], Vec::new(), nodes)
}

/// What a clone of a machine has its identity from, with the page above 4 GiB.
fn identity() -> Platform {
    let page = NodeRange::Memory { base: 0x40_0000_2000, len: 0x1000 };
    let nodes = vec![
        node(NodeKind::VmGenId, vec![page], vec![10]),
        node(NodeKind::FwCfg, vec![io(0x510, 12)], vec![]),
        node(NodeKind::AcpiPower, vec![io(0x600, 3)], vec![9]),
    ];
    Platform::new(vec![0], Vec::new(), nodes)
}

/// Three virtio devices with level-triggered interrupts, of which two share one.
fn levels() -> Platform {
    let virtio = |base, number| {
        let interrupts = vec![NodeInterrupt::new(number, Trigger::Level)];
        Node::new("virtio", NodeKind::VirtioMmio, vec![NodeRange::Memory { base, len: 0x1000 }], interrupts)
    };
    let nodes = vec![virtio(0xd000_0000, 5), virtio(0xd000_1000, 5), virtio(0xd000_2000, 20)];
    Platform::new(vec![0], Vec::new(), nodes)
}

/// A PCI root bus, with windows on both sides of 4 GiB.
fn pci() -> Platform {
    let ranges = vec![NodeRange::Memory { base: 0xd000_0000, len: 1 << 20 }, io(0xcf8, 8), io(0xc000, 16)];
    let windows = [0xe000_0000..=0xe7ff_ffff, 0x40_0000_0000..=0x4f_ffff_ffff];
    let host = node(NodeKind::PciHost, ranges, vec![5]).with_windows(windows);
    Platform::new(vec![0, 1], Vec::new(), vec![host])
}

/// Three NUMA nodes: one of a processor, one of more, of which one has a wide id, and one of memory alone.
fn nodes() -> Platform {
    let ram = vec![RamRange::new(0, 0xc000_0000), RamRange::new(1 << 32, 3 << 30)];
    let numa = Numa::new([NumaNode::new(1, 1 << 30), NumaNode::new(2, 4 << 30), NumaNode::new(0, 1 << 30)])
        .with_distance(2, 0, 40);
    Platform::new(vec![0, 2, 300], ram, Vec::new()).with_numa(Some(numa))
}

fn tables(platform: &Platform) -> Vec<(String, Vec<u8>)> {
    split(&acpi::tables(platform, BASE, 0x2_0000).unwrap())
}

#[test]
fn tables_are_the_golden_ones() {
    let found = tables(&everything());
    assert_eq!(
        found.iter().map(|(name, _)| &**name).collect::<Vec<_>>(),
        ["rsdp", "dsdt", "facp", "apic", "xsdt"]
    );
    compare_with_golden("", &found);
}

#[test]
fn iasl_accepts_every_table() {
    let dir = tempfile::tempdir().unwrap();
    let many = Platform::new((0..255).collect(), Vec::new(), everything().nodes);
    let bare = Platform::new(vec![0], Vec::new(), Vec::new());
    let cases = [
        ("everything", everything()),
        ("many", many),
        ("bare", bare),
        ("levels", levels()),
        ("pci", pci()),
        ("identity", identity()),
        ("nodes", nodes()),
    ];
    for (case, platform) in cases {
        let dir = dir.path().join(case);
        fs::create_dir(&dir).unwrap();
        for (name, table) in tables(&platform).iter().filter(|(name, _)| name != "rsdp") {
            accepted(&dir, name, table);
        }
    }
}

#[test]
fn the_dsdt_reads_as_it_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let tables = tables(&everything());
    let (name, dsdt) = &tables[1];
    let source = fs::read_to_string(accepted(dir.path(), name, dsdt)).unwrap();
    let devices: Vec<_> =
        source.lines().filter_map(|line| line.trim().strip_prefix("Device (")?.strip_suffix(')')).collect();
    assert_eq!(devices, ["COM1", "RTC", "KBD", "V000", "V001", "V002", "PWRB", "GED", "PEVT"]);
    let text = source.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "Name (_HID, \"LNRO0005\")",
        "Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive, ,, ) { 0x00000017, }",
        "Memory32Fixed (ReadWrite, 0xD0001000, // Address Base 0x00001000, // Address Length )",
        "QWordMemory (ResourceConsumer, PosDecode, MinFixed, MaxFixed, NonCacheable, ReadWrite, \
         0x0000000000000000, // Granularity 0x0000004000000000, // Range Minimum \
         0x0000004000000FFF, // Range Maximum",
        "Name (_HID, EisaId (\"PNP0501\")",
        "Name (_HID, EisaId (\"PNP0C0C\")",
        "Name (_HID, \"ACPI0013\"",
        "Notify (PWRB, 0x80)",
        "Name (\\_S5, Package (0x01)",
    ] {
        assert!(text.contains(part), "{part} is not in {text}");
    }
}

#[test]
fn identity_reads_as_it_is_meant() {
    let dsdt = words(&tables(&identity()), "dsdt");
    for part in [
        "Device (VGEN) { Name (_HID, \"OSSA0001\") // _HID: Hardware ID Name (_CID, \"VM_Gen_Counter\")",
        "Name (_DDN, \"VM_Gen_Counter\")",
        "Name (ADDR, Package (0x02) { 0x2000, 0x40 })",
        "Device (VGGE) { Name (_HID, \"ACPI0013\"",
        "Notify (VGEN, 0x80)",
        "Device (FWCF) { Name (_HID, \"QEMU0002\")",
        "IO (Decode16, 0x0510, // Range Minimum 0x0510, // Range Maximum 0x01, // Alignment 0x0C, // Length )",
    ] {
        assert!(dsdt.contains(part), "{part} is not in {dsdt}");
    }
    // Each event device has a _UID of its own.
    assert!(dsdt.contains("Name (_UID, 0x02)") && dsdt.contains("Name (_UID, Zero)"), "{dsdt}");
}

#[test]
fn level_triggered_lines_read_as_they_are_meant() {
    let words = |name: &str| iasl::words(&tables(&levels()), name);
    let dsdt = words("dsdt");
    let shared = "Interrupt (ResourceConsumer, Level, ActiveHigh, Shared, ,, ) { 0x00000005, }";
    let exclusive = "Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive, ,, ) { 0x00000014, }";
    assert_eq!((dsdt.matches(shared).count(), dsdt.matches(exclusive).count()), (2, 1), "{dsdt}");
    let madt = words("apic");
    assert_eq!(madt.matches("[Interrupt Source Override]").count(), 1, "{madt}");
    for part in ["Source : 05", "Interrupt : 00000005", "Polarity : 1", "Trigger Mode : 3"] {
        assert!(madt.contains(part), "{part} is not in {madt}");
    }
}

#[test]
fn numa_nodes_read_as_they_are_meant() {
    let tables = tables(&nodes());
    let names: Vec<_> = tables.iter().map(|(name, _)| &**name).collect();
    assert_eq!(names, ["rsdp", "dsdt", "facp", "apic", "srat", "slit", "xsdt"]);
    let srat = iasl::words(&tables, "srat");
    let mut found = Vec::new();
    for part in srat.split(" Subtable Type : ").skip(1) {
        let field = |name: &str| fields(part, name)[0];
        assert_eq!(field("Enabled"), 1, "{part}");
        found.push(match &part[..2] {
            "00" => (0, field("Proximity Domain Low(8)"), field("Apic ID"), 0),
            "01" => (1, field("Proximity Domain"), field("Base Address"), field("Address Length")),
            _ => (2, field("Proximity Domain"), field("Apic ID"), 0),
        });
    }
    let gib = 1 << 30;
    assert_eq!(
        found,
        [
            (0, 0, 0, 0),
            (0, 1, 2, 0),
            (2, 1, 300, 0),
            (1, 0, 0, gib),
            (1, 1, gib, 2 * gib),
            (1, 1, 4 * gib, 2 * gib),
            (1, 2, 6 * gib, gib),
        ]
    );
    let slit = iasl::words(&tables, "slit");
    for row in ["Locality 0 : 0A 14 28", "Locality 1 : 14 0A 14", "Locality 2 : 28 14 0A"] {
        assert!(slit.contains(row), "{row} is not in {slit}");
    }
}

#[test]
fn numa_nodes_of_another_machine_are_refused() {
    let mut platform = nodes();
    platform.cpus.pop();
    let error = acpi::tables(&platform, BASE, 0x2_0000).unwrap_err();
    assert_eq!(error.to_string(), "the NUMA nodes have 3 processors, and the machine has 2");
}

#[test]
fn a_pci_root_bus_reads_as_it_is_meant() {
    let words = |name: &str| iasl::words(&tables(&pci()), name);
    let dsdt = words("dsdt");
    for part in [
        "Name (_HID, EisaId (\"PNP0A08\")",
        "WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0x0000, // Granularity \
         0x0000, // Range Minimum 0x0000, // Range Maximum",
        "0xE0000000, // Range Minimum 0xE7FFFFFF, // Range Maximum",
        "0x0000004000000000, // Range Minimum 0x0000004FFFFFFFFF, // Range Maximum",
        "ToUUID (\"33db4d5b-1ff7-401c-9657-7441c03dd766\") /* PCI Host Bridge Device */",
        "OperationRegion (PCHP, SystemIO, 0xC000, 0x10)",
        "Name (_ADR, 0x001F0000) // _ADR: Address Name (_SUN, 0x1F)",
        "If ((Local0 & 0x02)) { Notify (S001, One) // Device Check }",
        "If ((Local1 & 0x80000000)) { Notify (S01F, 0x03) // Eject Request }",
        "Memory32Fixed (ReadWrite, 0xD0000000, // Address Base 0x00100000, // Address Length )",
    ] {
        assert!(dsdt.contains(part), "{part} is not in {dsdt}");
    }
    assert_eq!(dsdt.matches("Method (_EJ0, 1, Serialized)").count(), 31);
    let mcfg = words("mcfg");
    for part in ["Base Address : 00000000D0000000", "Start Bus Number : 00", "End Bus Number : 00"] {
        assert!(mcfg.contains(part), "{part} is not in {mcfg}");
    }
}
