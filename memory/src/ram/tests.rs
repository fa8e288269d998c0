use proptest::prelude::*;
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend};

use super::*;
use crate::testing::resident;
use crate::{host, host_page_size};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn ranges(ram: &Ram) -> Vec<(u64, u64)> {
    ram.slots().map(|slot| (slot.guest_addr, slot.size)).collect()
}

/// Returns true if a line of `/proc/self/maps` is about the mapping that contains `address`.
fn covers(line: &str, address: u64) -> bool {
    let hex = |digits| u64::from_str_radix(digits, 16).ok();
    let range = line.split(' ').next().and_then(|range| range.split_once('-'));
    range.is_some_and(|(start, end)| {
        matches!((hex(start), hex(end)), (Some(start), Some(end)) if (start..end).contains(&address))
    })
}

#[test]
fn small_ram_is_one_slot_at_zero() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    assert_eq!(ranges(&ram), [(0, MIB)]);
    assert_eq!(ram.size(), MIB);
    assert!(ram.slots().all(|slot| slot.file().is_none()));
}

#[test]
fn ram_up_to_the_gap_is_not_split() {
    let config = RamConfig::new(3 * GIB).overcommit(true);
    assert_eq!(ranges(&Ram::new(&config).unwrap()), [(0, 3 * GIB)]);
}

#[test]
fn sixty_four_gibibytes_around_the_gap_touch_no_memory() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let config = RamConfig::new(64 * GIB).overcommit(true).backing(backing);
        let ram = Ram::new(&config).unwrap();
        assert_eq!(ranges(&ram), [(0, 3 * GIB), (4 * GIB, 61 * GIB)]);
        let dma = ram.dma();
        dma.check(GuestAddress(0), 3 * GIB).unwrap();
        dma.check(GuestAddress(4 * GIB), 61 * GIB).unwrap();
        assert!(dma.check(GuestAddress(3 * GIB - 1), 2).is_err());
        assert!(dma.check(GuestAddress(4 * GIB - 1), 1).is_err());
        assert!(dma.check(GuestAddress(65 * GIB - 1), 2).is_err());
        dma.write_obj(GuestAddress(65 * GIB - 8), 0x1122_3344_5566_7788u64).unwrap();
        assert_eq!(dma.read_obj::<u64>(GuestAddress(65 * GIB - 8)).unwrap(), 0x1122_3344_5566_7788);
        // What was written, which may be in a huge page.
        let touched = ram.slots().map(|slot| resident(&slot)).sum::<usize>();
        assert!((1..=512).contains(&touched), "{touched} pages");
    }
}

#[test]
fn both_sides_of_the_gap_are_different_memory() {
    let config = RamConfig::new(4 * MIB).gap(2 * MIB..4 * MIB);
    let ram = Ram::new(&config).unwrap();
    assert_eq!(ranges(&ram), [(0, 2 * MIB), (4 * MIB, 2 * MIB)]);
    let dma = ram.dma();
    dma.write(GuestAddress(2 * MIB - 4), b"low.").unwrap();
    dma.write(GuestAddress(4 * MIB), b"high").unwrap();
    let mut low = [0; 4];
    dma.read(GuestAddress(2 * MIB - 4), &mut low).unwrap();
    assert_eq!(&low, b"low.");
    assert!(dma.write(GuestAddress(2 * MIB - 2), b"over").is_err());
}

#[test]
fn an_empty_gap_makes_one_slot() {
    let config = RamConfig::new(8 * GIB).gap(0..0).overcommit(true);
    assert_eq!(ranges(&Ram::new(&config).unwrap()), [(0, 8 * GIB)]);
}

#[test]
fn anonymous_memory_is_aligned_for_huge_pages() {
    for _ in 0..4 {
        let ram = Ram::new(&RamConfig::new(6 * MIB).thp(true)).unwrap();
        assert!(ram.slots().all(|slot| slot.host_addr % (2 * MIB) == 0));
    }
}

#[test]
fn one_memfd_backs_all_slots_and_holds_what_the_guest_wrote() {
    use std::os::unix::fs::FileExt;
    let config = RamConfig::new(4 * MIB).backing(Backing::Memfd).gap(2 * MIB..4 * MIB);
    let ram = Ram::new(&config).unwrap();
    let files: Vec<_> = ram.slots().map(|slot| slot.file().unwrap().clone()).collect();
    assert_eq!(files.iter().map(FileOffset::start).collect::<Vec<_>>(), [0, 2 * MIB]);
    assert!(Arc::ptr_eq(files[0].arc(), files[1].arc()));
    ram.dma().write(GuestAddress(4 * MIB + 16), b"shared").unwrap();
    let mut bytes = [0; 6];
    files[1].file().read_exact_at(&mut bytes, files[1].start() + 16).unwrap();
    assert_eq!(&bytes, b"shared");
}

#[test]
fn c5_a_peer_cannot_resize_the_memfd() {
    let ram = Ram::new(&RamConfig::new(MIB).backing(Backing::Memfd)).unwrap();
    let file = ram.slots().next().unwrap().file().unwrap().clone();
    assert!(file.file().set_len(0).is_err());
    assert!(file.file().set_len(2 * MIB).is_err());
}

#[test]
fn prefault_takes_all_pages() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = Ram::new(&RamConfig::new(4 * MIB).prefault(true).backing(backing)).unwrap();
        assert_eq!(ram.slots().map(|slot| resident(&slot)).sum::<usize>(), 1024);
    }
}

#[test]
fn core_dumps_leave_guest_memory_out_unless_asked() {
    let flags = |dump| {
        let ram = Ram::new(&RamConfig::new(MIB).dump(dump)).unwrap();
        let at = ram.slots().next().unwrap().host_addr;
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !covers(line, at));
        lines.find(|line| line.starts_with("VmFlags:")).unwrap().to_owned()
    };
    assert!(flags(false).split_whitespace().any(|flag| flag == "dd"));
    assert!(!flags(true).split_whitespace().any(|flag| flag == "dd"));
}

#[test]
fn a_short_pool_of_huge_pages_is_told_in_numbers() {
    for (backing, page_size) in [(Backing::Huge2M, 2 * MIB), (Backing::Huge1G, GIB)] {
        let config = RamConfig::new(1024 * GIB).backing(backing);
        let error = Ram::new(&config).unwrap_err();
        match host::huge_pool(page_size) {
            Ok(pool) => {
                let text = error.to_string();
                let needed = 1024 * GIB / page_size;
                assert!(
                    matches!(error, RamError::HugePages { available, .. } if available == pool.available)
                );
                assert!(text.contains(&format!("{needed} huge pages of {} MiB", page_size / MIB)), "{text}");
            }
            Err(_) => assert!(matches!(error, RamError::HugePageSize { .. })),
        }
    }
}

#[test]
fn more_than_the_host_has_is_told_with_both_numbers() {
    let host = host::total_memory();
    let page = host_page_size() as u64;
    let size = (host / page + 1) * page;
    let error = Ram::new(&RamConfig::new(size)).unwrap_err();
    assert!(matches!(error, RamError::HostMemory { size: s, host: h } if (s, h) == (size, host)));
    assert!(error.to_string().contains(&format!("the {} MiB that the host has", host / MIB)));
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
    let total = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:")).unwrap();
    let kib: u64 = total.trim().trim_end_matches(" kB").parse().unwrap();
    assert_eq!(host, kib * 1024);
}

#[test]
fn sizes_that_make_no_sense_are_refused() {
    let refuse = |config: RamConfig| Ram::new(&config).unwrap_err();
    assert!(matches!(refuse(RamConfig::new(0)), RamError::Zero));
    assert!(matches!(refuse(RamConfig::new(4097)), RamError::Unaligned { page_size: 4096, .. }));
    let half = RamConfig::new(3 * MIB).backing(Backing::Huge2M);
    assert!(matches!(refuse(half), RamError::Unaligned { page_size: 0x20_0000, .. }));
    for gap in [1..4096, 0..1, std::ops::Range { start: 8192, end: 4096 }] {
        assert!(matches!(refuse(RamConfig::new(MIB).gap(gap)), RamError::Gap { .. }));
    }
    let wraps = RamConfig::new(u64::MAX - 4095).overcommit(true);
    assert!(matches!(refuse(wraps), RamError::AddressSpace { .. }));
    let unmappable = RamConfig::new(1 << 60).overcommit(true);
    assert!(matches!(refuse(unmappable), RamError::Host { call: "mmap", .. }));
}

#[test]
fn the_mapping_lives_as_long_as_its_last_view() {
    use std::os::unix::fs::MetadataExt;
    let ram = Ram::new(&RamConfig::new(MIB).backing(Backing::Memfd)).unwrap();
    let inode = ram.slots().next().unwrap().file().unwrap().file().metadata().unwrap().ino().to_string();
    let mapped = || {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        maps.lines().any(|line| line.split_whitespace().nth(4) == Some(&inode))
    };
    let dma = ram.dma();
    let region = dma.memory().iter().next().unwrap().get_mmap();
    drop(ram);
    dma.write_obj(GuestAddress(0), 1u8).unwrap();
    drop(dma);
    assert!(mapped());
    drop(region);
    assert!(!mapped());
}

proptest! {
    #[test]
    fn the_pieces_are_all_of_ram_and_stay_out_of_the_gap(
        pages in 1u64..1 << 24,
        start in 0u64..1 << 24,
        len in 0u64..1 << 22,
    ) {
        let page = host_page_size() as u64;
        let gap = start * page..(start + len) * page;
        let config = RamConfig::new(pages * page).gap(gap.clone());
        let pieces = split(&config).unwrap();
        prop_assert_eq!(pieces.iter().map(|&(_, len)| len as u64).sum::<u64>(), config.size);
        for &(guest, len) in &pieces {
            prop_assert!(gap.is_empty() || guest + len as u64 <= gap.start || guest >= gap.end);
        }
    }
}

mod clear;
mod file;
mod foreign;
mod slots;
