use std::fs::File;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};

use super::*;
use crate::testing::resident;
use crate::{Backing, FileBacking, FilePiece, GuestMmap, Ram, RamConfig, map_file};

const MIB: u64 = 1 << 20;

fn page() -> u64 {
    host_page_size() as u64
}

/// A file of `pages` pages of ones.
fn file(pages: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![1; (pages * page()) as usize]).unwrap();
    file
}

/// The first byte of each page.
fn bytes(dma: &Dma, from: u64, pages: u64) -> Vec<u8> {
    (0..pages).map(|at| dma.read_obj(GuestAddress(from + at * page())).unwrap()).collect()
}

#[test]
fn private_memory_is_given_back_and_reads_as_zero() {
    let ram = Ram::new(&RamConfig::new(16 * page())).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(0), &vec![7; 16 * host_page_size()]).unwrap();
    let has = || resident(&ram.slots().next().unwrap());
    assert_eq!(has(), 16);
    dma.discard(GuestAddress(4 * page()), 8 * page()).unwrap();
    assert_eq!(has(), 8);
    assert_eq!(bytes(&dma, 3 * page(), 10), [7, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
    dma.write(GuestAddress(5 * page()), &[9]).unwrap();
    assert_eq!(bytes(&dma, 4 * page(), 3), [0, 9, 0]);
}

#[test]
fn a_hole_is_punched_in_a_memfd() {
    let ram = Ram::new(&RamConfig::new(16 * page()).backing(Backing::Memfd)).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(0), &vec![7; 16 * host_page_size()]).unwrap();
    let blocks = || ram.slots().next().unwrap().file().unwrap().file().metadata().unwrap().blocks();
    let before = blocks();
    dma.discard(GuestAddress(4 * page()), 8 * page()).unwrap();
    assert_eq!(blocks() * 2, before);
    assert_eq!(bytes(&dma, 3 * page(), 10), [7, 0, 0, 0, 0, 0, 0, 0, 0, 7]);
}

#[test]
fn a_range_over_two_slots() {
    let ram = Ram::new(&RamConfig::new(4 * page())).unwrap();
    ram.add_slot(4 * page(), 4 * page(), &Backing::Memfd).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(0), &vec![7; 8 * host_page_size()]).unwrap();
    dma.discard(GuestAddress(3 * page()), 2 * page()).unwrap();
    assert_eq!(bytes(&dma, 0, 8), [7, 7, 7, 0, 0, 7, 7, 7]);
}

#[test]
fn files_do_not_shine_through() {
    let ram = Ram::new(&RamConfig::new(16 * page())).unwrap();
    let dma = ram.dma();
    let piece = FilePiece { addr: GuestAddress(4 * page()), offset: 0, len: 8 * page() };
    map_file(&ram.map(), &file(8), &[piece]).unwrap();
    dma.write(GuestAddress(0), &[7]).unwrap();
    dma.discard(GuestAddress(0), 6 * page()).unwrap();
    dma.discard(GuestAddress(8 * page()), page()).unwrap();
    assert_eq!(bytes(&dma, 0, 16), [0, 0, 0, 0, 0, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0, 0]);

    let private = FileBacking::private(file(8), 0);
    let ram = Ram::new(&RamConfig::new(8 * page()).backing(Backing::File(private))).unwrap();
    let dma = ram.dma();
    dma.discard(GuestAddress(2 * page()), 3 * page()).unwrap();
    dma.discard(GuestAddress(2 * page()), 4 * page()).unwrap();
    assert_eq!(bytes(&dma, 0, 8), [1, 1, 0, 0, 0, 0, 1, 1]);
}

#[test]
fn a_shared_file_gets_a_hole() {
    let file = file(8);
    let shared = FileBacking::shared(file.try_clone().unwrap(), 2 * page());
    let ram = Ram::new(&RamConfig::new(4 * page()).backing(Backing::File(shared))).unwrap();
    let dma = ram.dma();
    match dma.discard(GuestAddress(page()), page()) {
        // The file system of the temporary folder decides.
        Err(DiscardError::Host { call: "madvise", .. }) => return,
        result => result.unwrap(),
    }
    assert_eq!(bytes(&dma, 0, 4), [1, 0, 1, 1]);
    let at = |at: u64| {
        let mut byte = [0xff];
        file.read_exact_at(&mut byte, at * page()).unwrap();
        byte[0]
    };
    assert_eq!([2, 3, 4].map(at), [1, 0, 1]);
}

#[test]
fn a_guest_cannot_use_up_the_mappings_of_the_process() {
    let pages = 4096;
    let private = FileBacking::private(file(pages), 0);
    let ram = Ram::new(&RamConfig::new(pages * page()).backing(Backing::File(private))).unwrap();
    let dma = ram.dma();
    let lines = || std::fs::read_to_string("/proc/self/maps").unwrap().lines().count();
    let before = lines();
    for at in (1..pages).step_by(2) {
        dma.discard(GuestAddress(at * page()), page()).unwrap();
    }
    // Other tests map memory, too.
    assert!(lines() - before < 3000, "{} mappings", lines() - before);
    assert!(bytes(&dma, 0, pages).chunks(2).all(|pair| pair == [1, 0]));
}

#[test]
fn c3_ranges_that_are_not_pages_or_not_ram_are_refused_and_nothing_changes() {
    let ram = Ram::new(&RamConfig::new(4 * page())).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(0), &vec![7; 4 * host_page_size()]).unwrap();
    for (addr, len) in [(1, page()), (0, 1), (0, page() + 1), (page() / 2, page())] {
        let error = dma.discard(GuestAddress(addr), len).unwrap_err();
        assert!(matches!(error, DiscardError::Misaligned { .. }), "{error}");
    }
    let last = u64::MAX - (page() - 1);
    for (addr, len) in [(0, 5 * page()), (4 * page(), page()), (last, page()), (last, 2 * page()), (0, last)]
    {
        let error = dma.discard(GuestAddress(addr), len).unwrap_err();
        assert!(matches!(error, DiscardError::Dma(DmaError::NotRam { .. })), "{error}");
    }
    dma.discard(GuestAddress(last), 0).unwrap();
    assert_eq!(bytes(&dma, 0, 4), [7; 4]);
}

#[test]
fn memory_that_cannot_be_given_back_is_refused_by_name() {
    let foreign = GuestMmap::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
    let error = Dma::new(foreign.into()).discard(GuestAddress(0), page()).unwrap_err();
    assert!(matches!(error, DiscardError::Backing { is: "not made by this crate" }), "{error}");
    let huge = RamConfig::new(2 * MIB).backing(Backing::Huge2M);
    // Where the host has no pool, there is nothing to refuse.
    if let Ok(ram) = Ram::new(&huge) {
        let error = ram.dma().discard(GuestAddress(0), 2 * MIB).unwrap_err();
        assert!(matches!(error, DiscardError::Backing { is: "made of huge pages" }), "{error}");
    }
}
