use std::collections::BTreeSet;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::*;
use crate::{Backing, RamConfig};

const GIB: u64 = 1 << 30;

fn page() -> u64 {
    host_page_size() as u64
}

fn pages(taken: &DirtyPages) -> BTreeSet<u64> {
    taken.ranges().flat_map(|range| range.step_by(host_page_size())).collect()
}

#[test]
fn c4_pages_of_every_slot_and_the_tail_pages() {
    // A slot of 3 GiB and one above 4 GiB, whose last word of bits is not full.
    let ram = Ram::new(&RamConfig::new(3 * GIB + 67 * page()).overcommit(true)).unwrap();
    let dma = ram.dma();
    let end = 4 * GIB + 67 * page();
    dma.write(GuestAddress(0), b"before").unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    dma.write(GuestAddress(3 * GIB - 1), b"x").unwrap();
    dma.write(GuestAddress(4 * GIB), b"x").unwrap();
    dma.memory().write_slice(b"x", GuestAddress(end - 1)).unwrap();
    log.merge_bitmap(0, &[1 << 7]).unwrap();
    log.merge_page(end - 2 * page()).unwrap();
    let taken = log.take();
    let expected =
        [7 * page()..8 * page(), 3 * GIB - page()..3 * GIB, 4 * GIB..4 * GIB + page(), end - 2 * page()..end];
    assert_eq!(taken.ranges().collect::<Vec<_>>(), expected);
    assert_eq!(taken.count(), 5);
    assert!(log.take().is_empty());
    drop(log);
    dma.write(GuestAddress(0), b"after").unwrap();
    assert!(ram.slots().all(|slot| slot.dirty().take().iter().all(|&word| word == 0)));
}

#[test]
fn c4_what_is_said_to_be_dirty_beside_ram_is_an_error_and_adds_nothing() {
    let gap = 70 * page()..200 * page();
    let ram = Ram::new(&RamConfig::new(140 * page()).gap(gap)).unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    let not_ram = |page_number: u64| Err(DirtyLogError::NotRam { addr: page_number * page() });
    assert_eq!(log.merge_page(70 * page()), not_ram(70));
    assert_eq!(log.merge_page(270 * page()), not_ram(270));
    let last = u64::MAX - (page() - 1);
    assert_eq!(log.merge_page(last), Err(DirtyLogError::NotRam { addr: last }));
    assert_eq!(log.merge_bitmap(199 * page(), &[1]), not_ram(199));
    assert!(matches!(log.merge_page(1), Err(DirtyLogError::Misaligned { addr: 1, .. })));
    assert!(matches!(log.merge_bitmap(page() + 8, &[]), Err(DirtyLogError::Misaligned { .. })));
    assert!(log.take().is_empty());
    // Beyond the end of the slot, and what belongs to it is there.
    assert_eq!(log.merge_bitmap(0, &[0, 1 << 5 | 1 << 6, u64::MAX]), not_ram(70));
    assert_eq!(log.merge_bitmap(69 * page(), &[0b1001]), not_ram(72));
    assert_eq!(pages(&log.take()), BTreeSet::from([69 * page()]));
    // A kernel's bitmap is padded with zeros.
    assert_eq!(log.merge_bitmap(200 * page(), &[1, 0, 0, 0]), Ok(()));
    assert_eq!(pages(&log.take()), BTreeSet::from([200 * page()]));
}

#[test]
fn there_is_one_log_at_a_time() {
    let ram = Ram::new(&RamConfig::new(4 * page())).unwrap();
    let log = DirtyLog::start(&ram).unwrap();
    assert_eq!(DirtyLog::start(&ram).unwrap_err(), DirtyLogError::Running);
    ram.dma().write(GuestAddress(0), b"x").unwrap();
    drop(log);
    assert!(DirtyLog::start(&ram).unwrap().take().is_empty());
}

#[test]
fn slots_that_come_are_dirty_and_slots_that_go_are_forgotten() {
    let ram = Ram::new(&RamConfig::new(4 * page())).unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    let (first, second) = (4 * GIB, 5 * GIB);
    let id = ram.add_slot(second, 65 * page(), &Backing::Memfd).unwrap();
    // Reported before the log has noticed the slot itself.
    log.merge_page(second).unwrap();
    assert!(log.take().ranges().eq(std::iter::once(second..second + 65 * page())));
    ram.add_slot(first, page(), &Backing::Anonymous).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(second + page()), b"x").unwrap();
    dma.write(GuestAddress(0), b"x").unwrap();
    assert_eq!(pages(&log.take()), BTreeSet::from([0, first, second + page()]));
    dma.write(GuestAddress(first), b"x").unwrap();
    dma.write(GuestAddress(second), b"x").unwrap();
    ram.remove_slot(id).unwrap();
    assert_eq!(pages(&log.take()), BTreeSet::from([first]));
    assert_eq!(log.merge_page(second), Err(DirtyLogError::NotRam { addr: second }));
}

#[test]
fn clearing_and_discarding_are_writes() {
    let ram = Ram::new(&RamConfig::new(4 * page()).gap(page()..2 * page())).unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    ram.dma().discard(GuestAddress(3 * page()), page()).unwrap();
    assert!(log.take().ranges().eq(std::iter::once(3 * page()..4 * page())));
    ram.clear().unwrap();
    assert!(log.take().ranges().eq([0..page(), 2 * page()..5 * page()]));
}

#[derive(Clone, Debug)]
enum Act {
    Write(u64, u64),
    Bitmap(u64, Vec<u64>),
    Page(u64),
    Take,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        (0u64..200, 1u64..5).prop_map(|(page, len)| Act::Write(page, len)),
        (0u64..200, prop::collection::vec(any::<u64>(), 0..4))
            .prop_map(|(page, bits)| Act::Bitmap(page, bits)),
        (0u64..200).prop_map(Act::Page),
        Just(Act::Take),
    ]
}

proptest! {
    #[test]
    fn it_is_a_set_of_pages(acts in prop::collection::vec(act(), 0..40)) {
        // RAM is the pages 0..67 and 100..171.
        let gap = 67 * page()..100 * page();
        let ram = Ram::new(&RamConfig::new(138 * page()).gap(gap)).unwrap();
        let slot = |at: u64| [0..67, 100..171].into_iter().find(|slot| slot.contains(&at));
        let dma = ram.dma();
        let mut log = DirtyLog::start(&ram).unwrap();
        let mut set = BTreeSet::new();
        for act in acts.into_iter().chain([Act::Take]) {
            match act {
                Act::Write(at, len) => {
                    let all = slot(at).is_some_and(|slot| at + len <= slot.end);
                    let bytes = vec![1; (len * page()) as usize - 1];
                    prop_assert_eq!(dma.write(GuestAddress(at * page()), &bytes).is_ok(), all);
                    set.extend((at..at + len).filter(|_| all));
                }
                Act::Bitmap(at, words) => {
                    let bit = |n: u64| words[n as usize / 64] >> (n % 64) & 1 != 0;
                    let named: Vec<u64> = (0..64 * words.len() as u64).filter(|&n| bit(n)).map(|n| at + n).collect();
                    let found = slot(at);
                    let inside = |n: &u64| found.as_ref().is_some_and(|slot| slot.contains(n));
                    let all = found.is_some() && named.iter().all(inside);
                    prop_assert_eq!(log.merge_bitmap(at * page(), &words).is_ok(), all);
                    set.extend(named.into_iter().filter(inside));
                }
                Act::Page(at) => {
                    prop_assert_eq!(log.merge_page(at * page()).is_ok(), slot(at).is_some());
                    set.extend(slot(at).map(|_| at));
                }
                Act::Take => {
                    let taken = log.take();
                    let expected: BTreeSet<u64> = std::mem::take(&mut set).iter().map(|at| at * page()).collect();
                    prop_assert_eq!(taken.count(), expected.len() as u64);
                    prop_assert_eq!(pages(&taken), expected);
                    let ranges: Vec<_> = taken.ranges().collect();
                    prop_assert!(ranges.windows(2).all(|pair| pair[0].end < pair[1].start));
                }
            }
        }
    }
}
