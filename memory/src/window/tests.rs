use std::thread;

use vm_memory::{GuestAddress, Le32};

use super::*;
use crate::{Ram, RamConfig, host_page_size};

const MIB: u64 = 1 << 20;

fn ram() -> Ram {
    Ram::new(&RamConfig::new(2 * MIB).gap(MIB..2 * MIB)).unwrap()
}

#[test]
fn all_accesses_reach_the_same_bytes_as_dma() {
    let dma = ram().dma();
    let window = dma.window(GuestAddress(0x1001), 64).unwrap();
    assert_eq!((window.len(), window.guest_address()), (64, 0x1001));
    window.write(1, b"0123456789abcdef").unwrap();
    assert_eq!(dma.read_obj::<[u8; 16]>(GuestAddress(0x1002)).unwrap(), *b"0123456789abcdef");
    assert_eq!(window.load::<u32>(3, Ordering::Relaxed).unwrap().to_le_bytes(), *b"2345");
    window.store(3, u32::from_le_bytes(*b"WXYZ"), Ordering::Release).unwrap();
    window.write_obj(8, Le32::from(0x2e2e_2e2e)).unwrap();
    let mut text = [0; 16];
    window.read(1, &mut text).unwrap();
    assert_eq!(&text, b"01WXYZ6....bcdef");
    assert_eq!(u64::from_le_bytes(*b"YZ6....b"), window.read_obj::<u64>(5).unwrap());
}

#[test]
fn accesses_end_inside_the_window() {
    let window = ram().dma().window(GuestAddress(0x1000), 6).unwrap();
    window.load::<u16>(4, Ordering::Acquire).unwrap();
    window.write(6, b"").unwrap();
    window.read(0, &mut [0; 6]).unwrap();
    for offset in [3, 5, 6, 7, usize::MAX - 3, usize::MAX] {
        assert_eq!(window.read_obj::<u32>(offset), Err(DmaError::OutsideWindow { offset, len: 4 }));
        assert!(window.write_obj(offset, 0u32).is_err());
        assert!(window.load::<u32>(offset, Ordering::Acquire).is_err());
        assert!(window.store(offset, 0u32, Ordering::Release).is_err());
        assert!(window.read(offset, &mut [0; 4]).is_err());
        assert!(window.write(offset, &[0; 4]).is_err());
    }
    assert!(window.read(0, &mut [0; 7]).is_err());
}

#[test]
fn c1_atomic_accesses_are_aligned_or_refused() {
    let dma = ram().dma();
    let window = dma.window(GuestAddress(0x1001), 64).unwrap();
    let refused = DmaError::Misaligned { addr: 0x1001, align: 2 };
    assert_eq!(window.load::<u16>(0, Ordering::Acquire), Err(refused));
    assert_eq!(window.store(0, 0u16, Ordering::Release), Err(refused));
    assert_eq!(dma.load::<u16>(GuestAddress(0x1001), Ordering::Acquire), Err(refused));
    window.load::<u8>(0, Ordering::Acquire).unwrap();
}

#[test]
fn c1_an_index_is_never_torn() {
    let dma = ram().dma();
    let window = dma.window(GuestAddress(0x2000), 4).unwrap();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 0..200_000u32 {
                let value = if round % 2 == 0 { 0x0000 } else { 0xffffu16 };
                dma.store(GuestAddress(0x2002), value, Ordering::Release).unwrap();
            }
        });
        while !writer.is_finished() {
            let value = window.load::<u16>(2, Ordering::Acquire).unwrap();
            assert!(value == 0 || value == 0xffff, "torn: {value:#x}");
        }
    });
}

#[test]
fn a_window_is_ram_in_one_piece() {
    let ram = ram();
    let dma = ram.dma();
    let all = dma.window(GuestAddress(2 * MIB), MIB).unwrap();
    all.write_obj(MIB as usize - 8, 1u64).unwrap();
    assert!(dma.window(GuestAddress(0), 0).unwrap().is_empty());
    for (addr, len) in
        [(MIB - 1, 2), (MIB, 1), (2 * MIB - 1, 2), (3 * MIB - 1, 2), (0, u64::MAX), (u64::MAX, 2)]
    {
        assert_eq!(dma.window(GuestAddress(addr), len).unwrap_err(), DmaError::NotRam { addr, len });
    }
    drop((ram, dma));
    assert_eq!(all.read_obj::<u64>(MIB as usize - 8).unwrap(), 1);
}

#[test]
fn adjacent_regions_are_not_one_piece() {
    let page_size = host_page_size();
    let page = page_size as u64;
    let regions = [(GuestAddress(0), page_size), (GuestAddress(page), page_size)];
    let dma = crate::Dma::new(Arc::new(crate::GuestMmap::from_ranges(&regions).unwrap()));
    assert_eq!(
        dma.window(GuestAddress(page - 8), 16).unwrap_err(),
        DmaError::Split { addr: page - 8, len: 16 }
    );
    dma.write_obj(GuestAddress(page - 4), 0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(dma.read_obj::<u32>(GuestAddress(page)).unwrap(), 0x1122_3344);
    let load = dma.load::<u64>(GuestAddress(page - 4), Ordering::Acquire);
    assert_eq!(load, Err(DmaError::Misaligned { addr: page - 4, align: 8 }));
}

#[test]
fn values_may_be_marked_together() {
    let ram = ram();
    let window = ram.dma().window(GuestAddress(2 * MIB), 0x4000).unwrap();
    ram.slots().for_each(|slot| slot.dirty().start());
    let marked = || ram.slots().map(|slot| slot.dirty().take()[0]).collect::<Vec<_>>();
    window.write_obj_unmarked(0x1000, 7u64).unwrap();
    assert_eq!(window.read_obj::<u64>(0x1000), Ok(7));
    assert!(window.write_obj_unmarked(0x3ffc, 7u64).is_err());
    assert_eq!(marked(), [0, 0]);
    window.mark_dirty(0x1000, 0x1001).unwrap();
    assert!(window.mark_dirty(0x3000, 0x1001).is_err());
    assert_eq!(marked(), [0, 0b110]);
}

#[test]
fn c4_writes_are_marked_in_the_slot_of_the_window() {
    let ram = ram();
    let window = ram.dma().window(GuestAddress(2 * MIB + 0x1ffe), 0x4000).unwrap();
    ram.slots().for_each(|slot| slot.dirty().start());
    window.store(0, 1u16, Ordering::Release).unwrap();
    window.write_obj(0x1002, 1u8).unwrap();
    window.write(0x3001, b"ab").unwrap();
    window.read(0, &mut [0; 64]).unwrap();
    window.load::<u16>(0x2002, Ordering::Acquire).unwrap();
    let taken: Vec<Vec<u64>> = ram.slots().map(|slot| slot.dirty().take()).collect();
    assert_eq!(taken, [vec![0; 4], vec![0b11_1010, 0, 0, 0]]);
}
