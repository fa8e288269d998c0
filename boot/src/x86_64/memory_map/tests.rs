use super::*;
use crate::platform::{Node, RamRange};
use MemoryKind::{Ram, Reserved};

fn ram(ranges: &[(u64, u64)]) -> Platform {
    let ram = ranges.iter().map(|&(base, len)| RamRange::new(base, len)).collect();
    Platform::new(vec![0], ram, Vec::new())
}

fn entry((base, len, kind): (u64, u64, MemoryKind)) -> MemoryMapEntry {
    MemoryMapEntry { base, len, kind }
}

#[test]
fn low_memory_has_a_hole_and_high_memory_follows() {
    let map = memory_map(&ram(&[(0, 0xc000_0000), (1 << 32, 2 << 30)])).unwrap();
    let expected = [
        (0, 0x9_fc00, Ram),
        (0x9_fc00, 0x6_0400, Reserved),
        (0x10_0000, 0xbff0_0000, Ram),
        (1 << 32, 2 << 30, Ram),
    ];
    assert_eq!(map, expected.map(entry));
}

#[test]
fn ram_that_no_guest_could_use_is_refused() {
    for ranges in [&[][..], &[(0, 0x10_0000)], &[(0x1000, 1 << 30)]] {
        assert!(matches!(memory_map(&ram(ranges)), Err(BootError::NoLowRam { .. })), "{ranges:x?}");
    }
    for second in [(0x1f_ffff, 1), (0x20_0000, 0), (u64::MAX, 2), (0, 1 << 40)] {
        let result = memory_map(&ram(&[(0, 0x20_0000), second]));
        assert!(
            matches!(result, Err(BootError::BadRamRange { base, len }) if (base, len) == second),
            "{second:x?}"
        );
    }
}

#[test]
fn as_many_ranges_as_there_is_room_for() {
    let mut ranges = ram(&[(0, 0x20_0000)]);
    ranges.ram.extend((1..78).map(|i| RamRange { base: i << 32, len: 1 }));
    assert_eq!(memory_map(&ranges).unwrap().len(), MAX_ENTRIES);
    ranges.ram.push(RamRange { base: 99 << 32, len: 1 });
    assert!(matches!(memory_map(&ranges), Err(BootError::TooManyRamRanges { count: 79, limit: 78 })));
}

#[test]
fn the_configuration_space_of_pci_is_reserved_where_it_is() {
    let mut platform = ram(&[(0, 0xc000_0000), (1 << 32, 2 << 30)]);
    let ecam = NodeRange::Memory { base: 0xd000_0000, len: 1 << 20 };
    platform.nodes.push(Node::new("pci", NodeKind::PciHost, vec![ecam], Vec::new()));
    let map = memory_map(&platform).unwrap();
    assert_eq!(map[3], entry((0xd000_0000, 1 << 20, Reserved)));
    assert_eq!((map.len(), map[4].base), (5, 1 << 32));
}

#[test]
fn the_page_of_the_generation_id_is_reserved_where_it_is() {
    let mut platform = ram(&[(0, 0xc000_0000), (1 << 32, 2 << 30)]);
    let page = NodeRange::Memory { base: 0xd000_3000, len: 0x1000 };
    platform.nodes.push(Node::new("generation", NodeKind::VmGenId, vec![page], Vec::new()));
    let map = memory_map(&platform).unwrap();
    assert_eq!((map.len(), map[3]), (5, entry((0xd000_3000, 0x1000, Reserved))));
}
