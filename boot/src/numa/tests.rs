use proptest::prelude::*;

use super::*;

const GIB: u64 = 1 << 30;

fn numa(nodes: &[(u32, u64)]) -> Numa {
    Numa::new(nodes.iter().map(|&(cpus, memory)| NumaNode::new(cpus, memory)))
}

#[test]
fn nodes_have_what_the_machine_has() {
    let two = numa(&[(2, GIB), (1, 2 * GIB)]);
    assert_eq!(two.check(3, 3 * GIB), Ok(()));
    assert_eq!(two.check(4, 3 * GIB), Err(NumaError::OtherCpus { found: 3, cpus: 4 }));
    assert_eq!(two.check(3, 4 * GIB), Err(NumaError::OtherMemory { found: 3 * GIB, memory: 4 * GIB }));
    assert_eq!(numa(&[]).check(1, GIB), Err(NumaError::OtherCpus { found: 0, cpus: 1 }));
    assert_eq!(numa(&[(0, GIB), (1, 0)]).check(1, GIB), Ok(()), "each may lack one of them");
    let empty = numa(&[(1, GIB), (0, 0)]).check(1, GIB);
    assert_eq!(empty, Err(NumaError::Empty { node: 1 }));
    let odd = numa(&[(1, GIB - 1), (0, 1)]).check(1, GIB).unwrap_err();
    assert_eq!(
        odd.to_string(),
        "the NUMA node 0 has 0x3fffffff bytes of memory; they have to be a multiple of 0x1000"
    );
    let many = Numa::new(vec![NumaNode::new(1, 0); 65]);
    assert_eq!(many.check(65, 0), Err(NumaError::TooMany { found: 65 }));
    let cpus = numa(&[(u32::MAX, GIB), (u32::MAX, 0)]).check(u32::MAX, GIB);
    assert_eq!(cpus, Err(NumaError::OtherCpus { found: 2 * u64::from(u32::MAX), cpus: u32::MAX }));
    let most: u64 = !0xfff;
    let memory = numa(&[(1, most), (0, most)]).check(1, most);
    assert_eq!(memory, Err(NumaError::OtherMemory { found: u64::MAX, memory: most }));
}

#[test]
fn distances_are_the_same_in_both_directions_and_10_within_a_node() {
    let three = numa(&[(1, GIB), (1, GIB), (1, GIB)]).with_distance(2, 0, 254).with_distance(1, 2, 11);
    assert_eq!(three.check(3, 3 * GIB), Ok(()));
    let row = |node| [0, 1, 2].map(|other| three.distance(node, other));
    assert_eq!([row(0), row(1), row(2)], [[10, 20, 254], [20, 10, 11], [254, 11, 10]]);
    assert_eq!(three.clone().with_distance(0, 1, 33).with_distance(1, 0, 20), three, "the usual one");
    for (from, to, distance) in [(0, 1, 10), (0, 1, 0), (0, 2, 255), (1, 1, 11)] {
        let error = three.clone().with_distance(to, from, distance).check(3, 3 * GIB);
        assert_eq!(error, Err(NumaError::Distance { from, to, distance }));
    }
    let error = three.with_distance(3, 1, 21).check(3, 3 * GIB).unwrap_err();
    assert_eq!(error, NumaError::NoSuchNode { from: 1, to: 3, nodes: 3 });
}

#[test]
fn ram_is_split_where_nodes_end() {
    let ram = [RamRange::new(0, 3 * GIB), RamRange::new(4 * GIB, 3 * GIB)];
    let parts = numa(&[(1, GIB), (1, 0), (0, 4 * GIB), (1, GIB)]).parts(&ram);
    let part = |node, base, len| (node, RamRange::new(base * GIB, len * GIB));
    assert_eq!(parts, [part(0, 0, 1), part(2, 1, 2), part(2, 4, 2), part(3, 6, 1)]);
    // A slot that was added.
    let ram = [&ram[..], &[RamRange::new(8 * GIB, 2 * GIB)]].concat();
    let numa = numa(&[(1, 3 * GIB), (1, 3 * GIB), (1, 0)]);
    assert_eq!(numa.parts(&ram), [part(0, 0, 3), part(1, 4, 3), part(1, 8, 2)]);
    assert_eq!(numa.check_ranges(3, &ram), Ok(()));
    let less = numa.check_ranges(3, &ram[..1]);
    assert_eq!(less, Err(NumaError::OtherMemory { found: 6 * GIB, memory: 3 * GIB }));
}

#[test]
fn nodes_without_memory_are_those_of_a_machine_without() {
    let none = numa(&[(2, 0), (1, 0)]);
    let error = none.check_ranges(3, &[RamRange::new(0, GIB)]);
    assert_eq!(error, Err(NumaError::OtherMemory { found: 0, memory: GIB }));
    assert_eq!(none.check_ranges(3, &[]), Ok(()));
}

proptest! {
    #[test]
    fn every_byte_of_ram_has_a_node(
        nodes in prop::collection::vec((0u32..4, 0u64..5), 1..6),
        ram in prop::collection::vec((0u64..3, 1u64..9), 1..5),
    ) {
        let numa = Numa::new(nodes.iter().map(|&(cpus, pages)| NumaNode::new(cpus, pages * Numa::PAGE)));
        let mut end = 0;
        let ram: Vec<RamRange> = ram.into_iter().map(|(gap, pages)| {
            let base = end + gap * Numa::PAGE;
            end = base + pages * Numa::PAGE;
            RamRange::new(base, pages * Numa::PAGE)
        }).collect();
        let parts = numa.parts(&ram);
        let pages = |parts: &[RamRange]| -> Vec<u64> {
            parts.iter().flat_map(|part| (part.base..part.base + part.len).step_by(Numa::PAGE as usize)).collect()
        };
        if nodes.iter().all(|(_, pages)| *pages == 0) {
            prop_assert!(parts.is_empty());
        } else {
            let found: Vec<RamRange> = parts.iter().map(|(_, part)| *part).collect();
            prop_assert_eq!(pages(&found), pages(&ram));
            prop_assert!(parts.is_sorted_by_key(|(node, _)| *node));
            let last = nodes.iter().rposition(|(_, pages)| *pages > 0).unwrap();
            for (number, &(_, pages)) in nodes.iter().enumerate().take(last) {
                let of: u64 = parts.iter().filter(|(node, _)| *node as usize == number).map(|(_, part)| part.len).sum();
                prop_assert!(of <= pages * Numa::PAGE);
            }
        }
    }
}
