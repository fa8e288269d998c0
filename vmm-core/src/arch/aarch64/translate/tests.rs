use std::collections::BTreeMap;

use super::*;

const HIGH: u64 = 0xffff_8000_0000_0000;
/// 48 bits each way; granules of 4 KiB.
const TCR: u64 = 16 | 16 << 16 | 2 << 30;

/// Tables by the addresses of their entries.
fn walk(tables: Tables, entries: &[(u64, u64)], address: u64) -> Option<u64> {
    let entries: BTreeMap<u64, u64> = entries.iter().copied().collect();
    tables.translate(address, |at| Some(entries.get(&at).copied().unwrap_or(0)))
}

#[test]
fn pages_and_blocks_of_each_half_are_found() {
    let tables = Tables { tcr: TCR, ttbr: [0x1_0000_0000_0000 | 0x4000, 0x8001] };
    let entries = [
        (0x8000 + 0x100 * 8, 0x9003), // level 0, for HIGH
        (0x9000, 0xa003),
        (0x9008, 0x8000_0000 | 0x401), // a block of 1 GiB
        (0xa000, 0xb003),
        (0xa008, 0x4020_0000 | 0x701), // a block of 2 MiB
        (0xb000 + 5 * 8, 0x0060_0000_1234_5000 | 0x703),
        (0x4000, 0x5003), // level 0, for low addresses
        (0x5000, 0x4000_0000 | 0x401),
    ];
    let at = |address| walk(tables, &entries, address);
    assert_eq!(at(HIGH + 0x5678), Some(0x1234_5678));
    assert_eq!(at(HIGH + 0x23_4567), Some(0x4023_4567));
    assert_eq!(at(HIGH + 0x4123_4567), Some(0x8123_4567));
    assert_eq!(at(0x0812_3456), Some(0x4812_3456));
    for nothing in [HIGH, HIGH + 0x6000, HIGH + 0x40_0000, HIGH + 0x8000_0000, 0x4000_0000] {
        assert_eq!(at(nothing), None, "{nothing:#x}");
    }
}

#[test]
fn other_granules_have_their_own_steps() {
    // 64 KiB and 42 bits: two levels.
    let tables = Tables { tcr: 22 | 1 << 14, ttbr: [0x1_0000, 0] };
    let entries = [(0x1_0008, 0x2_0003), (0x2_0000 + 8 * 3, 0x7fff_0003), (0x1_0010, 0xe000_0001)];
    assert_eq!(walk(tables, &entries, 0x2003_1234), Some(0x7fff_1234));
    assert_eq!(walk(tables, &entries, 0x4123_4567), Some(0xe123_4567));
    // 16 KiB and 47 bits: three levels.
    let tables = Tables { tcr: 17 | 2 << 14, ttbr: [0x4000, 0] };
    let entries = [(0x4000, 0x8003), (0x8000, 0xc003), (0xc000 + 8, 0x4_0003)];
    assert_eq!(walk(tables, &entries, 0x4321), Some(0x4_0321));
}

#[test]
fn hostile_registers_and_tables_find_nothing() {
    let all = [0, 1, 2, 3, u64::MAX, 1 << 63, 0xffff, TCR];
    for tcr in all.into_iter().chain((0..64).map(|bit| 1 << bit)).chain((0..64).map(|size| size | size << 16))
    {
        for ttbr in all {
            let tables = Tables { tcr, ttbr: [ttbr; 2] };
            for address in all {
                for entry in [0, 1, 2, 3, u64::MAX, !1] {
                    // Whatever it is, it comes to an end.
                    let _ = tables.translate(address, |_| Some(entry));
                }
                assert_eq!(tables.translate(address, |_| None), None);
            }
        }
    }
}
