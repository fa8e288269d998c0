use proptest::prelude::*;

use super::*;
use crate::acpi::RESET_VALUE;
use crate::platform::{Node, NodeInterrupt, NodeKind, NodeRange, PlatformError, Trigger};

const BASE: u64 = 0xe_0000;

fn node(kind: NodeKind, ranges: &[NodeRange], edges: &[u32]) -> Node {
    let interrupts = edges.iter().map(|&number| NodeInterrupt::new(number, Trigger::Edge)).collect();
    Node::new("it", kind, ranges.into(), interrupts)
}

/// The same with its interrupts level-triggered.
fn level(mut node: Node) -> Node {
    for interrupt in &mut node.interrupts {
        interrupt.trigger = Trigger::Level;
    }
    node
}

fn io(base: u16, len: u16) -> NodeRange {
    NodeRange::Io { base, len }
}

fn with_nodes(nodes: Vec<Node>) -> Platform {
    Platform::new(vec![0], Vec::new(), nodes)
}

/// The table with this signature, and its address.
fn table<'a>(tables: &'a [u8], signature: &[u8; 4]) -> (u64, &'a [u8]) {
    let at = (0..tables.len()).step_by(4).find(|&at| tables[at..].starts_with(signature)).unwrap();
    let len = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap()) as usize;
    (BASE + at as u64, &tables[at..at + len])
}

fn fadt(nodes: Vec<Node>) -> Vec<u8> {
    table(&tables(&with_nodes(nodes), BASE, 0x2_0000).unwrap(), b"FACP").1.to_vec()
}

fn u16_at(table: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(table[at..at + 2].try_into().unwrap())
}

fn u32_at(table: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(table[at..at + 4].try_into().unwrap())
}

fn u64_at(table: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(table[at..at + 8].try_into().unwrap())
}

#[test]
fn each_table_is_found_from_the_one_before_and_sums_to_zero() {
    let tables = tables(&with_nodes(Vec::new()), BASE, 0x2_0000).unwrap();
    let sum = |bytes: &[u8]| bytes.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
    assert_eq!((sum(&tables[..20]), sum(&tables[..36]), tables[15]), (0, 0, 2));
    let (xsdt_at, xsdt) = table(&tables, b"XSDT");
    assert_eq!(u64_at(&tables, 24), xsdt_at);
    let (fadt_at, fadt) = table(&tables, b"FACP");
    let (madt_at, madt) = table(&tables, b"APIC");
    assert_eq!((xsdt.len(), u64_at(xsdt, 36), u64_at(xsdt, 44)), (52, fadt_at, madt_at));
    let (dsdt_at, dsdt) = table(&tables, b"DSDT");
    assert_eq!(u64_at(fadt, 140), dsdt_at);
    for table in [xsdt, fadt, madt, dsdt] {
        assert_eq!(sum(table), 0);
    }
    for at in [xsdt_at, fadt_at, madt_at, dsdt_at] {
        assert_eq!(at % 8, 0);
    }
}

#[test]
fn legacy_hardware_is_there_if_it_is_there() {
    let arch = |nodes| u16_at(&fadt(nodes), 109);
    let keyboard = node(NodeKind::I8042, &[io(0x60, 5)], &[1]);
    let clock = node(NodeKind::Rtc, &[io(0x70, 2)], &[8]);
    let serial = node(NodeKind::Serial16550, &[io(0x3f8, 8)], &[4]);
    assert_eq!(arch(vec![]), NO_VGA_NO_RTC);
    assert_eq!(arch(vec![keyboard]), NO_VGA_NO_RTC | 0b11);
    assert_eq!(arch(vec![clock]), 0b101);
    assert_eq!(arch(vec![serial]), NO_VGA_NO_RTC | 1);
}

const NO_VGA_NO_RTC: u16 = 0b10_0100;

#[test]
fn power_off_and_reset_are_offered_where_they_work() {
    const RESET_REG_SUP: u32 = 1 << 10;
    let gas = |table: &[u8], at: usize| (table[at], table[at + 1], u64_at(table, at + 4));
    let one_range = node(NodeKind::AcpiPower, &[io(0x600, 3)], &[9]);
    let three_ranges = node(NodeKind::AcpiPower, &[io(0x600, 1), io(0x601, 1), io(0x602, 1)], &[9]);
    for power in [one_range, three_ranges] {
        let fadt = fadt(vec![power]);
        assert_eq!((gas(&fadt, 244), gas(&fadt, 256)), ((1, 8, 0x600), (1, 8, 0x601)));
        assert_eq!((gas(&fadt, 116), fadt[128]), ((1, 8, 0x602), RESET_VALUE));
        assert_ne!(u32_at(&fadt, 112) & RESET_REG_SUP, 0);
    }
    // Without it, a keyboard controller resets, and nothing powers off.
    let keyboard = fadt(vec![node(NodeKind::I8042, &[io(0x60, 5)], &[1])]);
    assert_eq!((gas(&keyboard, 116), keyboard[128], gas(&keyboard, 244)), ((1, 8, 0x64), 0xfe, (0, 0, 0)));
    let nothing = fadt(vec![]);
    assert_eq!(u32_at(&nothing, 112) & RESET_REG_SUP, 0);
    assert_eq!(gas(&nothing, 116), (0, 0, 0));
}

/// The (type, id, uid) of each processor in the MADT, and what follows them.
fn processors(cpus: Vec<u32>) -> (Vec<(u8, u32, u32)>, Vec<u8>) {
    let platform = Platform::new(cpus, Vec::new(), Vec::new());
    let tables = tables(&platform, BASE, 0x2_0000).unwrap();
    let mut rest = &table(&tables, b"APIC").1[44..];
    let mut found = Vec::new();
    loop {
        match *rest {
            [0, 8, uid, id, 1, 0, 0, 0, ..] => found.push((0, id.into(), uid.into())),
            [9, 16, 0, 0, ..] if u32_at(rest, 8) == 1 => found.push((9, u32_at(rest, 4), u32_at(rest, 12))),
            _ => return (found, rest.to_vec()),
        }
        rest = &rest[usize::from(rest[1])..];
    }
}

#[test]
fn up_to_255_processors_and_an_io_apic() {
    let (found, rest) = processors((0..255).collect());
    assert_eq!(found, (0..255).map(|id| (0, id, id)).collect::<Vec<_>>());
    assert_eq!(rest, [1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
}

#[test]
fn large_apic_ids_are_x2apics() {
    let (found, _) = processors(vec![0, 254, 255, 4096]);
    assert_eq!(found, [(0, 0, 0), (0, 254, 1), (9, 255, 2), (9, 4096, 3)]);
    // The 257th processor has a small id, but a large uid.
    let (found, _) = processors((1..=256).chain([0]).collect());
    assert_eq!(found.last(), Some(&(9, 0, 256)));
}

#[test]
fn processors_are_there_and_differ() {
    let error = |cpus| tables(&Platform::new(cpus, Vec::new(), Vec::new()), BASE, 0x2_0000).unwrap_err();
    assert_eq!(error(vec![]), AcpiError::NoCpu);
    assert_eq!(error(vec![3, 1, 3]), AcpiError::DuplicateCpu { id: 3 });
}

#[test]
fn nodes_that_are_not_what_their_kind_is() {
    let memory = NodeRange::Memory { base: 0xd000_0000, len: 0x1000 };
    let cases = [
        node(NodeKind::VirtioMmio, &[memory], &[]),
        node(NodeKind::VirtioMmio, &[io(0x60, 4)], &[5]),
        node(NodeKind::VirtioMmio, &[NodeRange::Memory { base: u64::MAX, len: 2 }], &[5]),
        node(NodeKind::VirtioMmio, &[NodeRange::Memory { base: 1 << 32, len: 0 }], &[5]),
        node(NodeKind::Serial16550, &[io(0x3f8, 7)], &[4]),
        node(NodeKind::Serial16550, &[memory], &[4]),
        node(NodeKind::I8042, &[io(0x60, 1)], &[1]),
        node(NodeKind::Pvpanic, &[io(0x505, 256)], &[]),
        node(NodeKind::Pvpanic, &[io(0x505, 0)], &[]),
        node(NodeKind::Pvpanic, &[io(0xffff, 2)], &[]),
        node(NodeKind::Rtc, &[], &[]),
        node(NodeKind::AcpiPower, &[io(0x600, 2)], &[]),
        node(NodeKind::VmGenId, &[memory], &[]),
        node(NodeKind::VmGenId, &[io(0x600, 16)], &[5]),
        node(NodeKind::VmGenId, &[NodeRange::Memory { base: 0xd000_0004, len: 16 }], &[5]),
        node(NodeKind::VmGenId, &[NodeRange::Memory { base: 0xd000_0000, len: 15 }], &[5]),
        node(NodeKind::VmGenId, &[NodeRange::Memory { base: u64::MAX - 7, len: 16 }], &[5]),
        node(NodeKind::FwCfg, &[io(0x510, 2)], &[]),
        node(NodeKind::FwCfg, &[memory], &[]),
    ];
    for node in cases {
        let expected = (node.kind, node.ranges.clone());
        let result = tables(&with_nodes(vec![node]), BASE, 0x2_0000);
        assert!(
            matches!(&result, Err(AcpiError::InvalidNode { id, .. }) if id == "it"),
            "{expected:x?}: {result:?}"
        );
    }
}

#[test]
fn devices_of_which_there_is_one() {
    let page = NodeRange::Memory { base: 0xd000_0000, len: 0x1000 };
    for (kind, ranges, at_most) in [
        (NodeKind::VmGenId, [page], 1),
        (NodeKind::FwCfg, [io(0x510, 12)], 1),
        (NodeKind::Rtc, [io(0x70, 2)], 1),
        (NodeKind::I8042, [io(0x60, 5)], 1),
        (NodeKind::AcpiPower, [io(0x600, 3)], 1),
        (NodeKind::Pvpanic, [io(0x505, 1)], 1),
        (NodeKind::Serial16550, [io(0x3f8, 8)], 15),
    ] {
        let with = |count| tables(&with_nodes(vec![level(node(kind, &ranges, &[4])); count]), BASE, 0x2_0000);
        with(at_most).unwrap();
        assert!(matches!(with(at_most + 1), Err(AcpiError::TooManyNodes { .. })), "{kind:?}");
    }
}

/// The descriptor of interrupt `number` in the DSDT: its flags (ACPI 6.5, 6.4.3.6).
fn descriptors(tables: &[u8], number: u32) -> Vec<u8> {
    let dsdt = table(tables, b"DSDT").1;
    let found = dsdt.windows(9).filter(|bytes| bytes[..3] == [0x89, 6, 0] && bytes[4] == 1);
    found.filter(|bytes| bytes[5..] == number.to_le_bytes()).map(|bytes| bytes[3]).collect()
}

#[test]
fn a_line_is_described_by_its_trigger_and_by_who_shares_it() {
    const EDGE: u8 = 1 << 1;
    const SHARED: u8 = 1 << 3;
    const CONSUMER: u8 = 1;
    let virtio = |base, gsi| node(NodeKind::VirtioMmio, &[NodeRange::Memory { base, len: 0x1000 }], &[gsi]);
    let nodes = vec![
        virtio(0xd000_0000, 5),
        level(virtio(0xd000_1000, 6)),
        level(virtio(0xd000_2000, 7)),
        level(virtio(0xd000_3000, 7)),
        level(node(NodeKind::AcpiPower, &[io(0x600, 3)], &[7])),
        level(virtio(0xd000_4000, 20)),
    ];
    let tables = tables(&with_nodes(nodes), BASE, 0x2_0000).unwrap();
    assert_eq!(descriptors(&tables, 5), [CONSUMER | EDGE]);
    assert_eq!(descriptors(&tables, 6), [CONSUMER]);
    assert_eq!(descriptors(&tables, 7), [CONSUMER | SHARED; 3]);
    assert_eq!(descriptors(&tables, 20), [CONSUMER]);
    // On the ISA bus, what is not an edge takes an override; once for all who share it, and not for other lines.
    let madt = table(&tables, b"APIC").1;
    let io_apic = 44 + 8;
    let overrides = &madt[io_apic + 12..];
    assert_eq!(
        overrides,
        [[2, 10, 0, 6, 6, 0, 0, 0, 0b1101, 0], [2, 10, 0, 7, 7, 0, 0, 0, 0b1101, 0]].concat()
    );
}

#[test]
fn only_levels_are_shared() {
    let clock = || node(NodeKind::Rtc, &[io(0x70, 2)], &[8]);
    let button = || node(NodeKind::AcpiPower, &[io(0x600, 3)], &[8]);
    for (clock, button) in [(clock(), button()), (level(clock()), button()), (clock(), level(button()))] {
        let button = Node { id: "button".into(), ..button };
        let error = tables(&with_nodes(vec![clock, button]), BASE, 0x2_0000).unwrap_err();
        let (first, second) = ("it".into(), "button".into());
        assert_eq!(error, PlatformError::SharedEdge { number: 8, first, second }.into());
    }
    tables(&with_nodes(vec![level(clock()), level(button())]), BASE, 0x2_0000).unwrap();
}

#[test]
fn hidden_devices_are_not_described() {
    let hidden = node(NodeKind::Hidden, &[], &[]);
    let with = tables(&with_nodes(vec![hidden]), BASE, 0x2_0000).unwrap();
    assert_eq!(with, tables(&with_nodes(vec![]), BASE, 0x2_0000).unwrap());
}

#[test]
fn tables_that_do_not_fit() {
    let memory = NodeRange::Memory { base: 0xd000_0000, len: 0x1000 };
    let nodes = |count| with_nodes(vec![level(node(NodeKind::VirtioMmio, &[memory], &[5])); count]);
    tables(&nodes(1000), BASE, 0x2_0000).unwrap();
    let error = tables(&nodes(4000), BASE, 0x2_0000).unwrap_err();
    assert!(matches!(error, AcpiError::TooLarge { nodes: 4000, cpus: 1, room: 0x2_0000, .. }), "{error}");
    // The most that names have room for, and one more.
    tables(&nodes(4096), BASE, 1 << 20).unwrap();
    let error = tables(&nodes(4097), BASE, 1 << 20).unwrap_err();
    assert_eq!(error, AcpiError::TooManyNodes { kind: NodeKind::VirtioMmio, limit: 4096 });
}

fn any_node() -> impl Strategy<Value = Node> {
    let kinds = [
        NodeKind::VirtioMmio,
        NodeKind::Serial16550,
        NodeKind::Rtc,
        NodeKind::I8042,
        NodeKind::AcpiPower,
        NodeKind::Pvpanic,
        NodeKind::VmGenId,
        NodeKind::FwCfg,
    ];
    let range = prop_oneof![
        (any::<u64>(), any::<u64>()).prop_map(|(base, len)| NodeRange::Memory { base, len }),
        (0u64..1 << 33, 0u64..0x2000).prop_map(|(base, len)| NodeRange::Memory { base, len }),
        (any::<u16>(), 0u16..10).prop_map(|(base, len)| io(base, len)),
        Just(io(0x60, 5)),
    ];
    (
        prop::sample::select(kinds.to_vec()),
        prop::collection::vec(range, 0..4),
        prop::collection::vec(prop_oneof![any::<u32>(), 0u32..4], 0..3),
        any::<bool>(),
    )
        .prop_map(|(kind, ranges, interrupts, is_level)| {
            let node = node(kind, &ranges, &interrupts);
            if is_level { level(node) } else { node }
        })
}

proptest! {
    #[test]
    fn any_platform_is_described_or_refused(
        nodes in prop::collection::vec(any_node(), 0..4),
        cpus in prop::collection::vec(any::<u32>(), 0..4),
        base: u64,
        room in 0u64..0x1000,
    ) {
        let platform = Platform::new(cpus, Vec::new(), nodes);
        if let Ok(tables) = tables(&platform, base, room) {
            prop_assert!(tables.len() as u64 <= room);
        }
    }
}
