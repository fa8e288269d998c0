//! The device tree against a golden file, and against the device tree compiler.
//!
//! A wanted change of the tree: run with `UPDATE_GOLDEN=1` and look at the difference that `dtc` shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests, too, may panic

use std::fs;
use std::path::Path;
use std::process::Command;

use ossature_boot::aarch64::fdt::{self, Chosen, FdtError};
use ossature_boot::{
    Cache, Caches, Node, NodeInterrupt, NodeKind, NodeRange, Numa, NumaNode, Platform, RamRange, Trigger,
};

fn memory(base: u64, len: u64) -> NodeRange {
    NodeRange::Memory { base, len }
}

fn node(kind: NodeKind, base: u64, number: u32, trigger: Trigger) -> Node {
    let interrupts = vec![NodeInterrupt::new(number, trigger)];
    Node::new(format!("{kind:?}"), kind, vec![memory(base, 0x1000)], interrupts)
}

fn gic(cpus: u64) -> Node {
    let ranges = vec![memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, cpus * 0x2_0000)];
    Node::new("gic", NodeKind::GicV3, ranges, Vec::new())
}

fn gic_v2() -> Node {
    let ranges = vec![memory(0xf000_0000, 0x1000), memory(0xf001_0000, 0x2000)];
    Node::new("gic", NodeKind::GicV2, ranges, Vec::new())
}

fn its() -> Node {
    Node::new("its", NodeKind::GicV3Its, vec![memory(0xf002_0000, 0x2_0000)], Vec::new())
}

fn pci() -> Node {
    let ranges = vec![memory(0xd010_0000, 0x10_0000), memory(0xd000_4000, 16)];
    let interrupts = vec![NodeInterrupt::new(5, Trigger::Edge)];
    Node::new("pci", NodeKind::PciHost, ranges, interrupts)
        .with_windows([0xe000_0000..=0xefff_ffff, 0x40_0000_0000..=0x4f_ffff_ffff])
}

fn button(number: u32) -> Node {
    let interrupts = vec![NodeInterrupt::new(number, Trigger::Edge)];
    Node::new("power", NodeKind::PowerButton, Vec::new(), interrupts)
}

/// Of a server's processor: two levels of its own, a third one that all share.
fn caches() -> Caches {
    Caches::new(Cache::new(64 << 10).lines(64, 256), Cache::new(48 << 10).lines(64, 256))
        .own(Cache::new(1 << 20).lines(64, 2048))
        .shared(Cache::new(32 << 20).lines(64, 32768))
}

fn fw_cfg(len: u64) -> Node {
    Node::new("fw-cfg", NodeKind::FwCfg, vec![memory(0xd000_5000, len)], Vec::new())
}

/// One of each kind of device, memory and virtio devices on both sides of 4 GiB.
fn everything() -> Platform {
    let nodes = vec![
        gic(3),
        its(),
        node(NodeKind::Pl011, 0xd000_0000, 2, Trigger::Level),
        node(NodeKind::Pl031, 0xd000_1000, 3, Trigger::Level),
        node(NodeKind::VirtioMmio, 0xd000_2000, 0, Trigger::Edge),
        node(NodeKind::VirtioMmio, 0x40_0000_0000, 95, Trigger::Level),
        node(NodeKind::VmGenId, 0xd000_3000, 4, Trigger::Edge),
        pci(),
        button(6),
        fw_cfg(24),
        Node::new("pmu", NodeKind::PmuV3, Vec::new(), Vec::new()),
        Node::new("hidden", NodeKind::Hidden, Vec::new(), Vec::new()),
    ];
    let ram = vec![RamRange::new(0, 0xc000_0000), RamRange::new(1 << 32, 5 << 30)];
    Platform::new(vec![0, 1, 0x100], ram, nodes).with_caches(Some(caches()))
}

/// The same where the interrupt controller is a GICv2, which has no ITS.
fn everything_on_v2() -> Platform {
    let mut platform = everything();
    platform.nodes.retain(|node| node.kind != NodeKind::GicV3Its);
    platform.nodes[0] = gic_v2();
    platform
}

fn blob(platform: &Platform) -> Result<Vec<u8>, FdtError> {
    let mut seed = [0; 64];
    seed.iter_mut().zip(0..).for_each(|(byte, n)| *byte = n);
    let initrd = Some(0xb000_0000..0xb012_3456);
    fdt::blob(platform, &Chosen { bootargs: "console=ttyAMA0 quiet", initrd, seed: Some(&seed) })
}

/// The source of a tree, of which the compiler has nothing to say.
fn source(blob: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("machine.dtb");
    fs::write(&binary, blob).unwrap();
    let output = Command::new("dtc")
        .args(["-I", "dtb", "-O", "dts"])
        .arg(&binary)
        .output()
        .expect("dtc runs (Debian has it in the package device-tree-compiler)");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.is_empty(), "{said}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_tree_is_the_golden_one() {
    for (name, platform) in [("machine", everything()), ("machine-gic-v2", everything_on_v2())] {
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name).with_extension("dtb");
        let found = blob(&platform).unwrap();
        source(&found);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&golden, &found).unwrap();
        }
        assert!(fs::read(&golden).unwrap() == found, "{} differs", golden.display());
    }
}

#[test]
fn a_gic_v2_names_the_processors_of_private_interrupts() {
    let tree = source(&blob(&everything_on_v2()).unwrap());
    let words = tree.split_whitespace().collect::<Vec<_>>().join(" ");
    for part in [
        "compatible = \"arm,cortex-a15-gic\";",
        "reg = <0x00 0xf0000000 0x00 0x1000 0x00 0xf0010000 0x00 0x2000>;",
        // Of three processors.
        "interrupts = <0x01 0x0d 0x704 0x01 0x0e 0x704 0x01 0x0b 0x704 0x01 0x0a 0x704>;",
        "pmu { compatible = \"arm,armv8-pmuv3\"; interrupts = <0x01 0x07 0x704>; };",
    ] {
        assert!(words.contains(part), "{part} is not in {words}");
    }
    assert!(!tree.contains("msi"), "{tree}");
    let eight = Platform::new((0..8).collect(), Vec::new(), vec![gic_v2()]);
    assert!(source(&blob(&eight).unwrap()).contains("0xff04"));
}

#[test]
fn dtc_accepts_machines_of_any_size() {
    for cpus in [1, 2, 16, 512] {
        let ids = (0..cpus).map(|n| (n & 0xf) | (n >> 4) << 8).collect();
        let nodes = vec![gic(cpus.into())];
        let tree = source(&blob(&Platform::new(ids, vec![RamRange::new(0, 1 << 20)], nodes)).unwrap());
        assert!(!tree.contains("cache-size"), "unknown caches");
        assert_eq!(tree.matches("device_type = \"cpu\"").count(), cpus as usize);
        assert!(!tree.contains("stdout-path"), "there is no console: {tree}");
    }
}

#[test]
fn without_an_its_pci_has_no_messages() {
    let mut platform = everything();
    let tree = source(&blob(&platform).unwrap());
    assert!(tree.contains("msi-map = <0x00 0x03 0x00 0x100>"), "{tree}");
    platform.nodes.retain(|node| node.kind != NodeKind::GicV3Its);
    let tree = source(&blob(&platform).unwrap());
    assert!(tree.contains("pcie@d0100000") && !tree.contains("msi"), "{tree}");
}

#[test]
fn without_a_disk_and_randomness_nothing_is_said_of_them() {
    let tree = source(&fdt::blob(&everything(), &Chosen::default()).unwrap());
    assert!(!tree.contains("initrd") && !tree.contains("seed"), "{tree}");
}

#[test]
fn a_power_button_is_a_key_that_is_an_interrupt() {
    let tree = source(&blob(&everything()).unwrap());
    let words = tree.split_whitespace().collect::<Vec<_>>().join(" ");
    let key = "power { label = \"Power Button\"; linux,code = <0x74>; wakeup-source; interrupts = <0x00 0x06 0x01>; };";
    assert!(words.contains(&format!("gpio-keys {{ compatible = \"gpio-keys\"; {key}")), "{words}");
}

#[test]
fn files_are_where_their_driver_looks_for_them() {
    let tree = source(&blob(&everything()).unwrap());
    let words = tree.split_whitespace().collect::<Vec<_>>().join(" ");
    let files = "fw-cfg@d0005000 { compatible = \"qemu,fw-cfg-mmio\"; reg = <0x00 0xd0005000 0x00 0x18>; dma-coherent; };";
    assert!(words.contains(files), "{words}");
}

#[test]
fn performance_monitors_have_the_interrupt_of_the_base_system_architecture() {
    let tree = source(&blob(&everything()).unwrap());
    let words = tree.split_whitespace().collect::<Vec<_>>().join(" ");
    let pmu = "pmu { compatible = \"arm,armv8-pmuv3\"; interrupts = <0x01 0x07 0x04>; };";
    assert!(words.contains(pmu), "{words}");
}

#[test]
fn processors_are_cores_of_one_package() {
    let tree = source(&blob(&everything()).unwrap());
    let words = tree.split_whitespace().collect::<Vec<_>>().join(" ");
    let cores = ["core0 { cpu = <0x1000>; }", "core1 { cpu = <0x1001>; }", "core2 { cpu = <0x1002>; }"];
    assert!(words.contains(&format!("cpu-map {{ socket0 {{ cluster0 {{ {};", cores.join("; "))), "{words}");
}

#[test]
fn numa_nodes_have_memory_and_packages() {
    let mut platform = everything();
    let numa = Numa::new([NumaNode::new(1, 4 << 30), NumaNode::new(2, 3 << 30), NumaNode::new(0, 1 << 30)]);
    platform.numa = Some(numa.with_distance(0, 2, 33));
    let words = source(&blob(&platform).unwrap()).split_whitespace().collect::<Vec<_>>().join(" ");
    let memory = |base: &str, range: &str, node: u32| {
        format!(
            "memory@{base} {{ device_type = \"memory\"; reg = <{range}>; numa-node-id = <0x{node:02x}>; }};"
        )
    };
    for part in [
        memory("0", "0x00 0x00 0x00 0xc0000000", 0),
        memory("100000000", "0x01 0x00 0x00 0x40000000", 0),
        memory("140000000", "0x01 0x40000000 0x00 0xc0000000", 1),
        memory("200000000", "0x02 0x00 0x00 0x40000000", 2),
        "distance-map { compatible = \"numa-distance-map-v1\"; distance-matrix = <0x00 0x00 0x0a 0x00 0x01 0x14 \
         0x00 0x02 0x21 0x01 0x00 0x14 0x01 0x01 0x0a 0x01 0x02 0x14 0x02 0x00 0x21 0x02 0x01 0x14 0x02 0x02 0x0a>; };"
            .to_owned(),
        "cpu-map { socket0 { cluster0 { core0 { cpu = <0x1000>; }; }; }; \
         socket1 { cluster0 { core0 { cpu = <0x1001>; }; core1 { cpu = <0x1002>; }; }; }; };"
            .to_owned(),
    ] {
        assert!(words.contains(&part), "{part} is not in {words}");
    }
    let of = |kind: &str| -> Vec<&str> {
        let nodes = words.split(kind).skip(1).filter_map(|part| part.split_once("numa-node-id = <"));
        nodes.map(|(_, node)| &node[..4]).collect()
    };
    assert_eq!(of("pcie@"), ["0x00"], "the root bus belongs to the first");
    let nodes = of("cpu@");
    assert_eq!(nodes, ["0x00", "0x01", "0x01"], "{words}");
    // Each package has a third level.
    for (name, handle) in [("l3-cache", 0x1000_0000), ("l3-cache-1", 0x1000_0008)] {
        assert!(
            words.contains(&format!("{name} {{")) && words.contains(&format!("phandle = <0x{handle:x}>")),
            "{words}"
        );
    }
    let leads_to = |handle: u32| words.matches(&format!("next-level-cache = <0x{handle:x}>")).count();
    assert_eq!((leads_to(0x1000_0000), leads_to(0x1000_0008)), (1, 2), "{words}");

    platform.numa = Some(Numa::new([NumaNode::new(3, 7 << 30), NumaNode::new(0, 2 << 30)]));
    let error = blob(&platform).unwrap_err().to_string();
    assert_eq!(error, "the NUMA nodes have 0x240000000 bytes of memory, and the machine has 0x200000000");
}

#[test]
fn each_processor_has_caches_of_its_own_before_those_that_all_share() {
    let words = |caches: Caches| {
        let mut platform = everything();
        platform.caches = Some(caches);
        source(&blob(&platform).unwrap()).split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let tree = words(caches());
    let first = "d-cache-size = <0x10000>; d-cache-line-size = <0x40>; d-cache-sets = <0x100>; \
        i-cache-size = <0xc000>; i-cache-line-size = <0x40>; i-cache-sets = <0x100>; next-level-cache = <0x2000";
    assert_eq!(tree.matches(first).count(), 3, "{tree}");
    for n in [0, 8, 16] {
        let handle = format!("0x{:x}", 0x2000_0000 + n);
        let second = format!(
            "next-level-cache = <{handle}>; l2-cache {{ compatible = \"cache\"; cache-level = <0x02>; cache-unified; \
             cache-size = <0x100000>; cache-line-size = <0x40>; cache-sets = <0x800>; phandle = <{handle}>; \
             next-level-cache = <0x10000000>; }};"
        );
        assert!(tree.contains(&second), "{tree}");
    }
    let third = "}; l3-cache { compatible = \"cache\"; cache-level = <0x03>; cache-unified; cache-size = <0x2000000>; \
        cache-line-size = <0x40>; cache-sets = <0x8000>; phandle = <0x10000000>; }; cpu-map {";
    assert!(tree.contains(third), "{tree}");

    // Two levels behind each other on either side, of which only the sizes are known.
    let size = |kib: u32| Cache::new(kib << 10);
    let tree = words(Caches::new(size(1), size(2)).own(size(3)).own(size(4)).shared(size(5)).shared(size(6)));
    for (level, handle, next) in [
        (2, 0x2000_0000, Some(0x2000_0001)),
        (3, 0x2000_0001, Some(0x1000_0000)),
        (4, 0x1000_0000, Some(0x1000_0001)),
        (5, 0x1000_0001, None),
    ] {
        let next = next.map_or(String::new(), |next: u32| format!(" next-level-cache = <0x{next:x}>;"));
        let node = format!("cache-size = <0x{:x}>; phandle = <0x{handle:x}>;{next} }};", (level + 1) << 10);
        assert!(tree.contains(&node), "{node}: {tree}");
    }
    // No second level of their own.
    let tree = words(Caches::new(size(1), size(2)).shared(size(3)));
    assert_eq!(tree.matches("next-level-cache = <0x10000000>").count(), 3, "{tree}");
    let tree = words(Caches::new(size(1), size(2)));
    assert!(!tree.contains("next-level-cache") && !tree.contains("-cache {"), "{tree}");
}

#[test]
fn what_cannot_be_described_is_refused_by_name() {
    let with = |change: &dyn Fn(&mut Platform)| {
        let mut platform = everything();
        change(&mut platform);
        blob(&platform).unwrap_err().to_string()
    };
    let io = NodeRange::Io { base: 0x3f8, len: 8 };
    let com1 = Node::new("com1", NodeKind::Serial16550, vec![io], Vec::new());
    let said = with(&|platform| platform.nodes.push(com1.clone()));
    assert_eq!(said, "device `com1`: the device tree cannot describe a device of kind Serial16550");
    let said = with(&|platform| platform.nodes[4].interrupts.clear());
    assert_eq!(said, "device `VirtioMmio` of kind VirtioMmio has to have an interrupt");
    let said = with(&|platform| platform.nodes[2].ranges = vec![io]);
    assert_eq!(said, "device `Pl011` of kind Pl011 has to have a range of memory");
    let said = with(&|platform| platform.nodes[0].ranges.truncate(1));
    assert_eq!(said, "device `gic` of kind GicV3 has to have a second range of memory");
    let said = with(&|platform| drop(platform.nodes.remove(0)));
    assert_eq!(said, "the platform has 0 interrupt controllers; a device tree needs one");
    let said = with(&|platform| platform.nodes.push(gic_v2()));
    assert_eq!(said, "the platform has 2 interrupt controllers; a device tree needs one");
    let said = with(&|platform| platform.nodes[0] = gic_v2());
    assert_eq!(said, "device `its` of kind GicV3Its has to have a GICv3");
    let nine = Platform::new((0..9).collect(), Vec::new(), vec![gic_v2()]);
    let said = blob(&nine).unwrap_err().to_string();
    assert_eq!(said, "the platform has 9 processors, and a GICv2 has interfaces for 8");
    let pmu = Node::new("pmu", NodeKind::PmuV3, Vec::new(), Vec::new());
    let said = with(&|platform| platform.nodes.push(pmu.clone()));
    assert_eq!(said, "the platform has 2 devices of kind PmuV3; a device tree has one at most");
    let said = with(&|platform| platform.nodes.push(button(7)));
    assert_eq!(said, "the platform has 2 devices of kind PowerButton; a device tree has one at most");
    let said = with(&|platform| platform.nodes.push(fw_cfg(24)));
    assert_eq!(said, "the platform has 2 devices of kind FwCfg; a device tree has one at most");
    let said = with(&|platform| platform.nodes[9] = fw_cfg(12));
    assert_eq!(said, "device `fw-cfg` of kind FwCfg has to have 24 bytes of memory");
    let said = with(&|platform| platform.nodes.push(gic(1)));
    assert_eq!(said, "the platform has 2 interrupt controllers; a device tree needs one");
    let said = with(&|platform| platform.nodes.push(its()));
    assert_eq!(said, "the platform has 2 devices of kind GicV3Its; a device tree has one at most");
    let said = with(&|platform| platform.nodes.push(pci()));
    assert_eq!(said, "the platform has 2 devices of kind PciHost; a device tree has one at most");
    let said = with(&|platform| platform.nodes[7].windows.clear());
    assert_eq!(said, "device `pci` of kind PciHost has to have a window");
    #[allow(clippy::reversed_empty_ranges)]
    for window in [5..=3, 0..=u64::MAX] {
        let said = with(&|platform| platform.nodes[7].windows.push(window.clone()));
        let needs = "windows that are not empty and not all of memory";
        assert_eq!(said, format!("device `pci` of kind PciHost has to have {needs}"));
    }
    for len in [0, 0x1_0000, 257 << 20] {
        let said = with(&|platform| platform.nodes[7].ranges[0] = memory(0xd010_0000, len));
        assert_eq!(
            said,
            "device `pci` of kind PciHost has to have 1 MiB of configuration space for each bus"
        );
    }
    let none = Caches::new(Cache::new(4096), Cache::new(4096)).own(Cache::new(0));
    let said = with(&|platform| platform.caches = Some(none.clone()));
    assert!(said.contains("of level 2 is none"), "{said}");
    let said = with(&|platform| platform.cpus.push(0x100));
    assert_eq!(said, "the id 0x100 is given to two processors");
    assert_eq!(with(&|platform| platform.cpus.clear()), "the platform has no processor");
}
