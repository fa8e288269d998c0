use std::sync::Arc;

use super::*;
use crate::vm_memory::{GuestAddress, GuestMemoryBackend};
use crate::{DirtyLog, GuestMmap, Ram, RamConfig};

fn segment(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

/// Two regions that touch, and one apart.
fn dma() -> Arc<Dma> {
    let ranges = [(0, 0x2000), (0x2000, 0x2000), (0x10000, 0x1000)].map(|(at, len)| (GuestAddress(at), len));
    Arc::new(Dma::new(Arc::new(GuestMmap::from_ranges(&ranges).unwrap())))
}

fn pieces(pinned: &Pinned) -> Vec<(usize, usize)> {
    let (array, len) = pinned.iovecs();
    // SAFETY: an array of so many.
    let array = unsafe { std::slice::from_raw_parts(array.cast::<iovec>(), len as usize) };
    array.iter().map(|piece| (piece.iov_base as usize, piece.iov_len)).collect()
}

#[test]
fn what_is_pinned_is_where_the_guest_has_it() {
    let dma = dma();
    let mut pinned = Pinned::default();
    pinned.pin(&dma, &[segment(0x100, 16), segment(0x1ff0, 32), segment(0x10000, 1)]).unwrap();
    let host = |addr| dma.memory().get_host_address(GuestAddress(addr)).unwrap() as usize;
    let want = [(host(0x100), 16), (host(0x1ff0), 16), (host(0x2000), 16), (host(0x10000), 1)];
    assert_eq!(pieces(&pinned), want);
    assert_eq!((pinned.moved(), pinned.left(), pinned.single()), (0, 49, None));
    pinned.release();
    assert_eq!((pieces(&pinned).len(), pinned.left()), (0, 0));
}

#[test]
fn a15_what_is_left_goes_on_at_each_split() {
    let dma = dma();
    let segments = [segment(0x100, 3), segment(0x1ffe, 4), segment(0x10000, 5)];
    let bytes = |pinned: &Pinned| -> Vec<usize> {
        pieces(pinned).into_iter().flat_map(|(base, len)| base..base + len).collect()
    };
    for first in 0..=12 {
        for second in 0..=13 - first {
            let mut pinned = Pinned::default();
            pinned.pin(&dma, &segments).unwrap();
            let all = bytes(&pinned);
            pinned.advance(first);
            assert_eq!(bytes(&pinned), all[first as usize..]);
            pinned.advance(second);
            let moved = (first + second).min(12);
            assert_eq!(bytes(&pinned), all[moved as usize..]);
            assert_eq!((pinned.moved(), pinned.left()), (moved, 12 - moved));
        }
    }
}

#[test]
fn b9_what_is_not_ram_is_refused_and_pins_nothing() {
    let dma = dma();
    let mut pinned = Pinned::default();
    pinned.pin(&dma, &[segment(0, 512)]).unwrap();
    let error = pinned.pin(&dma, &[segment(0, 512), segment(0x3fff, 2)]).unwrap_err();
    assert_eq!(error, DmaError::NotRam { addr: 0x3fff, len: 2 });
    assert_eq!((pieces(&pinned).len(), pinned.left()), (0, 0));
    assert_eq!(Arc::strong_count(&dma), 1);
}

#[test]
fn memory_stays_mapped_while_it_is_pinned() {
    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    let slot = ram.add_slot(1 << 32, 1 << 20, &crate::Backing::Anonymous).unwrap();
    let mut pinned = Pinned::default();
    pinned.pin(&Arc::new(ram.dma()), &[segment(1 << 32, 8)]).unwrap();
    ram.remove_slot(slot).unwrap();
    let (base, len) = pinned.single().unwrap();
    assert_eq!(len, 8);
    // SAFETY: it is mapped, and nobody else has it.
    unsafe { base.cast::<u64>().write_unaligned(7) };
    drop(ram);
    // SAFETY: as above.
    assert_eq!(unsafe { base.cast::<u64>().read_unaligned() }, 7);
}

#[test]
fn c4_what_the_kernel_wrote_is_dirty() {
    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    let mut pinned = Pinned::default();
    pinned.pin(&Arc::new(ram.dma()), &[segment(0x5000, 0x1000), segment(0x9000, 0x2000)]).unwrap();
    pinned.mark_dirty(0x1001);
    assert_eq!(log.take().ranges().collect::<Vec<_>>(), [0x5000..0x6000, 0x9000..0xa000]);
}
