use proptest::prelude::*;

use super::*;
use crate::platform::{Node, NodeInterrupt, NodeRange, Trigger};

fn memory(base: u64, len: u64) -> NodeRange {
    NodeRange::Memory { base, len }
}

fn node(kind: NodeKind, ranges: &[NodeRange], edges: &[u32]) -> Node {
    let interrupts = edges.iter().map(|&number| NodeInterrupt::new(number, Trigger::Edge)).collect();
    Node::new("it", kind, ranges.into(), interrupts)
}

fn gic() -> Node {
    node(NodeKind::GicV3, &[memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, 0x2_0000)], &[])
}

fn gic_v2() -> Node {
    node(NodeKind::GicV2, &[memory(0xf000_0000, 0x1000), memory(0xf001_0000, 0x2000)], &[])
}

fn refused(cpus: Vec<u32>, nodes: Vec<Node>) -> AcpiError {
    tables(&Platform::new(cpus, Vec::new(), nodes), 0x2_0000, 0x20_0000).unwrap_err()
}

#[test]
fn a_machine_has_processors_that_differ_and_one_interrupt_controller() {
    assert_eq!(refused(vec![], vec![gic()]), AcpiError::NoCpu);
    assert_eq!(refused(vec![3, 1, 3], vec![gic()]), AcpiError::DuplicateCpu { id: 3 });
    assert_eq!(refused(vec![0], vec![]), AcpiError::InterruptController { found: 0 });
    assert_eq!(refused(vec![0], vec![gic(), gic()]), AcpiError::InterruptController { found: 2 });
    assert_eq!(refused(vec![0], vec![gic(), gic_v2()]), AcpiError::InterruptController { found: 2 });
    assert_eq!(refused((0..4097).collect(), vec![gic()]), AcpiError::TooManyCpus { limit: 4096 });
    assert_eq!(refused((0..9).collect(), vec![gic_v2()]), AcpiError::TooManyCpus { limit: 8 });
    let its = node(NodeKind::GicV3Its, &[memory(0xf002_0000, 0x2_0000)], &[]);
    let error = refused(vec![0], vec![gic_v2(), its]);
    assert_eq!(error.to_string(), "device `it` (GicV3Its) needs a GICv3");
}

#[test]
fn nodes_that_are_not_what_their_kind_is() {
    let page = memory(0xd000_0000, 0x1000);
    let io = NodeRange::Io { base: 0x3f8, len: 8 };
    for wrong in [
        node(NodeKind::Pl011, &[page], &[]),
        node(NodeKind::Pl011, &[io], &[1]),
        node(NodeKind::Pl011, &[memory(0xd000_0000, 1 << 32)], &[1]),
        node(NodeKind::PowerButton, &[], &[]),
        node(NodeKind::PowerButton, &[page], &[1]),
        node(NodeKind::PowerButton, &[], &[988]),
        node(NodeKind::VirtioMmio, &[page], &[u32::MAX]),
    ] {
        let (kind, ranges) = (wrong.kind, wrong.ranges.clone());
        let error = refused(vec![0], vec![gic(), wrong]);
        assert!(
            matches!(&error, AcpiError::InvalidNode { id, .. } if id == "it"),
            "{kind:?} {ranges:x?}: {error}"
        );
    }
    for ranges in [vec![page], vec![page, memory(0, 1 << 32)], vec![page, io]] {
        for kind in [NodeKind::GicV2, NodeKind::GicV3] {
            let error = refused(vec![0], vec![node(kind, &ranges, &[])]);
            assert!(matches!(error, AcpiError::InvalidNode { kind: of, .. } if of == kind), "{error}");
        }
    }
}

#[test]
fn a_clock_is_not_left_out_in_silence() {
    let clock = node(NodeKind::Pl031, &[memory(0xd000_0000, 0x1000)], &[1]);
    let error = refused(vec![0], vec![gic(), clock]);
    assert_eq!(error.to_string(), "device `it`: the ACPI tables cannot describe a device of kind Pl031");
}

#[test]
fn there_is_one_power_button() {
    let button = |number| node(NodeKind::PowerButton, &[], &[number]);
    let error = refused(vec![0], vec![gic(), button(1), button(2)]);
    assert_eq!(error, AcpiError::TooManyNodes { kind: NodeKind::PowerButton, limit: 1 });
}

#[test]
fn tables_that_do_not_fit() {
    let platform = Platform::new((0..100).collect(), Vec::new(), vec![gic()]);
    let len = tables(&platform, 0x2_0000, u64::MAX).unwrap().len() as u64;
    assert_eq!(tables(&platform, 0x2_0000, len).unwrap().len() as u64, len);
    let error = tables(&platform, 0x2_0000, len - 1).unwrap_err();
    assert_eq!(error, AcpiError::TooLarge { nodes: 1, cpus: 100, len, room: len - 1 });
}

fn any_node() -> impl Strategy<Value = Node> {
    let kinds = [
        NodeKind::VirtioMmio,
        NodeKind::Pl011,
        NodeKind::Pl031,
        NodeKind::GicV2,
        NodeKind::GicV3,
        NodeKind::PowerButton,
        NodeKind::VmGenId,
        NodeKind::FwCfg,
        NodeKind::PciHost,
        NodeKind::Serial16550,
    ];
    let range = prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(base, len)| memory(base, len)),
        (0u64..1 << 33, 0u64..0x2000).prop_map(|(base, len)| memory(base, len)),
        (any::<u16>(), 0u16..10).prop_map(|(base, len)| NodeRange::Io { base, len }),
    ];
    (
        prop::sample::select(kinds.to_vec()),
        prop::collection::vec(range, 0..4),
        prop::collection::vec(prop_oneof![any::<u32>(), 0u32..4], 0..3),
    )
        .prop_map(|(kind, ranges, interrupts)| node(kind, &ranges, &interrupts))
}

proptest! {
    #[test]
    fn any_platform_is_described_or_refused(
        nodes in prop::collection::vec(any_node(), 0..4),
        cpus in prop::collection::vec(any::<u32>(), 0..4),
        has_gic: bool,
        base: u64,
        room in 0u64..0x1000,
    ) {
        let nodes = if has_gic { [nodes, vec![gic()]].concat() } else { nodes };
        if let Ok(tables) = tables(&Platform::new(cpus, Vec::new(), nodes), base, room) {
            prop_assert!(tables.len() as u64 <= room);
        }
    }
}
