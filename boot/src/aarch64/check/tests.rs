use super::*;
use crate::aarch64::{acpi, fdt};
use crate::platform::{NodeInterrupt, RamRange, Trigger};

fn memory(base: u64, len: u64) -> NodeRange {
    NodeRange::Memory { base, len }
}

fn node(id: &str, kind: NodeKind, ranges: &[NodeRange], edges: &[u32]) -> Node {
    let interrupts = edges.iter().map(|&number| NodeInterrupt::new(number, Trigger::Edge)).collect();
    Node::new(id, kind, ranges.into(), interrupts)
}

fn virtio(id: &str, base: u64, edge: u32) -> Node {
    node(id, NodeKind::VirtioMmio, &[memory(base, 0x1000)], &[edge])
}

fn machine() -> Platform {
    let gic =
        node("gic", NodeKind::GicV3, &[memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, 0x4_0000)], &[]);
    let its = node("its", NodeKind::GicV3Its, &[memory(0xf002_0000, 0x2_0000)], &[]);
    let ram = vec![RamRange::new(0, 1 << 30), RamRange::new(1 << 32, 1 << 30)];
    Platform::new(vec![0, 1], ram, vec![gic, its, virtio("disk", 0xd000_0000, 987)])
}

/// What either kind of tables says of a machine: the same, in a node's case in its own words.
fn refused(change: impl FnOnce(&mut Platform)) -> String {
    let mut platform = machine();
    change(&mut platform);
    let tree = fdt::blob(&platform, &fdt::Chosen::default()).unwrap_err().to_string();
    let tables = acpi::tables(&platform, 0x2_0000, 0x20_0000).unwrap_err().to_string();
    let words =
        |said: &str| said.replace(" of kind ", " ").replace(['(', ')'], "").replace("has to have", "needs");
    assert_eq!(words(&tree), words(&tables));
    tree
}

fn added(node: Node) -> String {
    refused(|platform| platform.nodes.push(node))
}

#[test]
fn a_machine_that_does_not_contradict_itself() {
    fdt::blob(&machine(), &fdt::Chosen::default()).unwrap();
    acpi::tables(&machine(), 0x2_0000, 0x20_0000).unwrap();
    let mut last = machine();
    last.cpus.push(0x00ff_ffff);
    last.nodes.push(node("id", NodeKind::VmGenId, &[memory(u64::MAX - 15, 16)], &[1]));
    // What is not described may be anything, but for its interrupts.
    last.nodes.push(node("hidden", NodeKind::Hidden, &[memory(0xd000_0000, 0), memory(7, 7)], &[2, 3]));
    assert!(check(&last).is_ok());
    fdt::blob(&last, &fdt::Chosen::default()).unwrap();
    acpi::tables(&last, 0x2_0000, 0x20_0000).unwrap();
}

#[test]
fn interrupts_are_shared_peripheral_ones_and_edges_of_one_device() {
    for number in [988, u32::MAX - 32, u32::MAX] {
        let said = added(virtio("nic", 0xd000_1000, number));
        let needs = "shared peripheral interrupts: 0 to 987";
        assert_eq!(said, format!("device `nic` of kind VirtioMmio has to have {needs}"));
    }
    let said = added(virtio("nic", 0xd000_1000, 987));
    assert_eq!(said, "devices `disk` and `nic` cannot share interrupt 987: both have to be level-triggered");
}

#[test]
fn ranges_begin_somewhere_of_their_own_and_end() {
    let needs = "memory ranges that are not empty and do not wrap";
    for range in [memory(0xd000_1000, 0), memory(u64::MAX, 2), memory(2, u64::MAX), memory(0, 0)] {
        let said = added(node("nic", NodeKind::VirtioMmio, &[range], &[1]));
        assert_eq!(said, format!("device `nic` of kind VirtioMmio has to have {needs}"));
    }
    let said = refused(|platform| platform.nodes[0].ranges[1] = memory(0xf100_0000, 0));
    assert_eq!(said, format!("device `gic` of kind GicV3 has to have {needs}"));

    assert_eq!(
        added(virtio("nic", 0xd000_0000, 1)),
        "both device `disk` and device `nic` begin at 0xd0000000"
    );
    let uart = node("uart", NodeKind::Pl011, &[memory(0xf000_0000, 0x1000)], &[1]);
    assert_eq!(added(uart), "both device `gic` and device `uart` begin at 0xf0000000");
    assert_eq!(added(virtio("nic", 1 << 32, 1)), "both RAM and device `nic` begin at 0x100000000");
    let said = refused(|platform| platform.ram.push(RamRange::new(1 << 32, 1 << 30)));
    assert_eq!(said, "both RAM and RAM begin at 0x100000000");
    for (base, len) in [(2 << 32, 0), (u64::MAX, 2)] {
        let said = refused(|platform| platform.ram.push(RamRange::new(base, len)));
        assert_eq!(said, format!("there cannot be {len:#x} bytes of RAM at {base:#x}"));
    }
}

#[test]
fn a_generation_id_has_16_bytes_at_a_multiple_of_8() {
    for range in [memory(0xd000_1000, 15), memory(0xd000_1004, 16)] {
        let said = added(node("id", NodeKind::VmGenId, &[range], &[1]));
        assert_eq!(said, "device `id` of kind VmGenId has to have 16 bytes at a multiple of 8");
    }
}

#[test]
fn nothing_is_dropped() {
    let (one, two) = (memory(0xd000_1000, 0x1000), memory(0xd000_2000, 0x1000));
    for (kind, ranges, edges) in [
        (NodeKind::VirtioMmio, &[one, two][..], &[1][..]),
        (NodeKind::VirtioMmio, &[one], &[1, 2]),
        (NodeKind::Pl011, &[one, two], &[1]),
        (NodeKind::VmGenId, &[one], &[1, 2]),
        (NodeKind::FwCfg, &[memory(0xd000_1000, 24)], &[1]),
        (NodeKind::PowerButton, &[one], &[1]),
        (NodeKind::PowerButton, &[], &[1, 2]),
        (NodeKind::PmuV3, &[one], &[]),
        (NodeKind::PmuV3, &[], &[1]),
    ] {
        let said = added(node("it", kind, ranges, edges));
        let needs = "no more ranges and interrupts than guests can be told of";
        assert_eq!(said, format!("device `it` of kind {kind:?} has to have {needs}"));
    }
    refused(|platform| platform.nodes[0].ranges.push(one));
    refused(|platform| platform.nodes[1].ranges.push(one));
}

#[test]
fn ids_of_processors_are_affinities() {
    for id in [0x0100_0000, 0x8000_0001, u32::MAX] {
        let said = refused(|platform| platform.cpus.push(id));
        assert_eq!(said, format!("the id {id:#x} of a processor has bits beyond its affinity's, 0xffffff"));
    }
}
