use ossature_memory::layout::{Placement, Request, solve};

use super::*;

const GIB: u64 = 1 << 30;

/// Where a window of `size` bytes is.
fn window(ram_end: u64, address_bits: u32, size: u64) -> Option<u64> {
    let request = Request { owner: "pci".to_owned(), size, align: size, placement: Placement::Any };
    solve(&high_window_space(ram_end, address_bits), &[request]).ok().map(|places| places[0])
}

#[test]
fn windows_are_where_guests_have_addresses() {
    for bits in [40, 42, 44, 48, 52] {
        assert_eq!(window(5 * GIB, bits, 64 * GIB), Some(256 * GIB), "{bits} bits");
        assert_eq!(window(300 * GIB, bits, 64 * GIB), Some(512 * GIB), "{bits} bits");
    }
    assert_eq!(window(5 * GIB, 39, 64 * GIB), Some(256 * GIB));
    assert_eq!(window(5 * GIB, 38, 64 * GIB), Some(64 * GIB));
    // Just below what they have.
    assert_eq!(window(800 * GIB, 40, 64 * GIB), Some(832 * GIB));
    assert_eq!(window(1000 * GIB, 40, 64 * GIB), None);
    assert_eq!(window(1000 * GIB, 40, 16 * GIB), Some(1008 * GIB));
    assert_eq!(window(5 * GIB, 36, 64 * GIB), None);
    assert_eq!(window(5 * GIB, 36, 32 * GIB), Some(32 * GIB));
    assert_eq!(window(40 * GIB, 36, 16 * GIB), Some(48 * GIB));
    assert_eq!(window(0, 36, 4 * GIB), Some(4 * GIB));
    // There is nothing above 4 GiB.
    assert_eq!(window(GIB, 32, GIB), None);
    assert_eq!(window(u64::MAX, 52, GIB), None);
}

#[test]
fn the_interrupt_controllers_are_beside_each_other_and_no_device_is_there() {
    are_beside_each_other(&platform_nodes(512, false, true));
    are_beside_each_other(&platform_nodes(8, false, false));
    assert!(!is_reserved(&MMIO_FIXED));
}

fn are_beside_each_other(nodes: &[Node]) {
    let mut ranges: Vec<_> = nodes.iter().flat_map(|node| &node.ranges).collect();
    ranges.sort_by_key(|range| match range {
        NodeRange::Memory { base, .. } => *base,
        other => panic!("{other:?}"),
    });
    let mut end = *RESERVED.start();
    for range in ranges {
        let NodeRange::Memory { base, len } = *range else { panic!("{range:?}") };
        assert!(base >= end && base % 0x1_0000 == 0, "{range:?}");
        end = base + len;
        assert!(is_reserved(&(base..=end - 1)));
    }
    assert!(end - 1 <= *RESERVED.end());
}
