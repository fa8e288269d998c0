//! RAM that was mapped with vm-memory alone.

use std::sync::Arc;

use vm_memory::bitmap::AtomicBitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap};

use crate::testing::resident;
use crate::{Backing, DirtyLog, DiscardError, MapFileError, Ram, RamError, host_page_size};

const MIB: usize = 1 << 20;

#[test]
fn both_see_what_either_writes_until_both_let_go() {
    let ranges = [(GuestAddress(0), MIB), (GuestAddress(1 << 32), 2 * MIB)];
    let theirs = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).unwrap();
    let ram = Ram::from_memory(&theirs).unwrap();
    assert_eq!(ram.size(), 3 << 20);
    let slots: Vec<_> = ram.slots().map(|slot| (slot.guest_addr, slot.size, slot.file().is_none())).collect();
    assert_eq!(slots, [(0, 1 << 20, true), (1 << 32, 2 << 20, true)]);
    let (dma, high) = (ram.dma(), GuestAddress((1 << 32) + 5));
    theirs.write_obj(7u32, high).unwrap();
    assert_eq!(dma.read_obj::<u32>(high).unwrap(), 7);
    dma.write_obj(high, 8u32).unwrap();
    assert_eq!(theirs.read_obj::<u32>(high).unwrap(), 8);
    let alive: Vec<_> = theirs.iter().map(|region| Arc::downgrade(&region.get_mmap())).collect();
    drop((theirs, ram));
    assert_eq!(dma.read_obj::<u32>(high).unwrap(), 8);
    drop(dma);
    assert!(alive.iter().all(|region| region.upgrade().is_none()), "it is unmapped");
}

#[test]
fn it_stays_its_owners() {
    let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MIB)]).unwrap();
    let ram = Ram::from_memory(&theirs).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(0x1000), &[1; 0x1000]).unwrap();
    let discarded = dma.discard(GuestAddress(0x1000), 0x1000);
    assert!(matches!(discarded, Err(DiscardError::Backing { is: "another owner's" })));
    let file = tempfile::tempfile().unwrap();
    file.set_len(0x1000).unwrap();
    let piece = crate::FilePiece { addr: GuestAddress(0x1000), offset: 0, len: 0x1000 };
    assert!(matches!(crate::map_file(&ram.map(), &file, &[piece]), Err(MapFileError::Backing { .. })));
    assert_eq!(dma.read_obj::<u8>(GuestAddress(0x1fff)).unwrap(), 1);
    ram.clear().unwrap();
    assert_eq!(dma.read_obj::<u8>(GuestAddress(0x1fff)).unwrap(), 0);
    // It can be added to, and written pages are logged.
    let slot = ram.add_slot(1 << 30, 1 << 20, &Backing::Anonymous).unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    dma.write(GuestAddress(0x3000), &[1]).unwrap();
    let pages = log.take();
    assert_eq!((pages.ranges().next(), pages.count()), (Some(0x3000..0x4000), 1));
    drop(log);
    ram.remove_slot(slot).unwrap();
}

#[test]
fn a_shared_file_is_named_and_zero_for_the_next_guest() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(2 << 20).unwrap();
    let range = (GuestAddress(0), MIB, Some(FileOffset::new(file, 1 << 20)));
    let theirs = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
    let ram = Ram::from_memory(&theirs).unwrap();
    assert_eq!(ram.slots().next().unwrap().file().unwrap().start(), 1 << 20);
    ram.dma().write(GuestAddress(0), b"x").unwrap();
    ram.clear().unwrap();
    assert_eq!(theirs.read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
}

#[test]
fn memory_that_cannot_be_written_is_refused() {
    let region = vm_memory::mmap::MmapRegionBuilder::new(MIB)
        .with_mmap_prot(libc::PROT_READ)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_PRIVATE)
        .build()
        .unwrap();
    let region = vm_memory::GuestRegionMmap::<()>::new(region, GuestAddress(0)).unwrap();
    let theirs = GuestMemoryMmap::from_regions(vec![region]).unwrap();
    assert!(matches!(Ram::from_memory(&theirs), Err(RamError::NotWritable { guest_addr: 0 })));
}

#[test]
fn the_host_has_anonymous_memory_back() {
    let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), MIB)]).unwrap();
    let ram = Ram::from_memory(&theirs).unwrap();
    ram.dma().write(GuestAddress(0x1000), &[1]).unwrap();
    ram.clear().unwrap();
    assert_eq!(resident(&ram.slots().next().unwrap()), 0);
}

#[test]
fn parts_of_pages_are_refused() {
    let page = host_page_size();
    let memory = |addr, len| {
        let region = GuestRegionMmap::new(MmapRegion::<()>::new(len).unwrap(), GuestAddress(addr)).unwrap();
        GuestMemoryMmap::from_regions(vec![region]).unwrap()
    };
    assert!(matches!(Ram::from_memory(&memory(0, page + 1)), Err(RamError::Unaligned { .. })));
    assert!(matches!(Ram::from_memory(&memory(1, page)), Err(RamError::SlotUnaligned { .. })));
}
