//! RAM for a guest that starts again.

use std::os::unix::fs::MetadataExt;

use super::file::file;
use super::*;
use crate::{FileBacking, FilePiece, map_file};

fn page() -> u64 {
    host_page_size() as u64
}

/// Writes to all RAM, clears it, and returns the first byte of each page.
fn cleared(ram: &Ram) -> Vec<u8> {
    let dma = ram.dma();
    for slot in ram.slots() {
        dma.write(GuestAddress(slot.guest_addr), &vec![0xaa; slot.size as usize]).unwrap();
    }
    ram.clear().unwrap();
    let pages =
        ram.slots().flat_map(|slot| (slot.guest_addr..slot.guest_addr + slot.size).step_by(host_page_size()));
    pages.map(|at| dma.read_obj(GuestAddress(at)).unwrap()).collect()
}

#[test]
fn it_reads_as_zero_and_the_host_has_it_back() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let config = RamConfig::new(8 * page()).backing(backing.clone()).gap(6 * page()..9 * page());
        let ram = Ram::new(&config).unwrap();
        let added = ram.add_slot(100 * page(), 2 * page(), &backing).unwrap();
        let has = || ram.slots().map(|slot| resident(&slot)).collect::<Vec<_>>();
        ram.dma().write(GuestAddress(0), &[1]).unwrap();
        assert_eq!(has(), [1, 0, 0]);
        ram.clear().unwrap();
        assert_eq!(has(), [0; 3]);
        if let Some(file) = ram.slots().next().unwrap().file() {
            assert_eq!(file.file().metadata().unwrap().blocks(), 0);
        }
        assert_eq!(cleared(&ram), [0; 10]);
        ram.remove_slot(added).unwrap();
        assert_eq!(cleared(&ram), [0; 8]);
    }
}

#[test]
fn pages_from_a_pool_read_as_zero_and_stay() {
    // Where the host has no pool, there is nothing to clear.
    if let Ok(ram) = Ram::new(&RamConfig::new(2 * MIB).backing(Backing::Huge2M)) {
        assert_eq!(cleared(&ram), vec![0; (2 * MIB / page()) as usize]);
        assert_eq!(resident(&ram.slots().next().unwrap()), (2 * MIB / page()) as usize);
    }
}

#[test]
fn files_that_were_mapped_over_it_are_gone() {
    let ram = Ram::new(&RamConfig::new(8 * page())).unwrap();
    let pieces = [(1, 2), (5, 1)].map(|(at, pages)| FilePiece {
        addr: GuestAddress(at * page()),
        offset: 0,
        len: pages * page(),
    });
    for _ in 0..2 {
        map_file(&ram.map(), &file(2), &pieces).unwrap();
        ram.clear().unwrap();
        let dma = ram.dma();
        assert!((0..8).all(|at| dma.read_obj::<u8>(GuestAddress(at * page())).unwrap() == 0));
        assert_eq!(cleared(&ram), [0; 8]);
    }
}

#[test]
fn a_private_file_has_its_bytes_again() {
    let private = Backing::File(FileBacking::private(file(4), page()));
    let ram = Ram::new(&RamConfig::new(3 * page()).backing(private)).unwrap();
    ram.dma().discard(GuestAddress(page()), page()).unwrap();
    assert_eq!(cleared(&ram), [2, 3, 4]);
    // And can be given back again.
    ram.dma().discard(GuestAddress(0), 2 * page()).unwrap();
    assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(0)).unwrap(), 0);
}

#[test]
fn a_private_file_has_its_bytes_again_where_another_was_mapped_over_it() {
    let private = Backing::File(FileBacking::private(file(4), 0));
    let ram = Ram::new(&RamConfig::new(4 * page()).backing(private)).unwrap();
    let piece = FilePiece { addr: GuestAddress(page()), offset: 3 * page(), len: page() };
    map_file(&ram.map(), &file(4), &[piece]).unwrap();
    assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(page())).unwrap(), 4);
    assert_eq!(cleared(&ram), [1, 2, 3, 4]);
}

#[test]
fn a_shared_file_stays_as_it_is_where_it_was_added_and_is_zero_where_it_is_the_ram() {
    let shared = Backing::File(FileBacking::shared(file(4), 0));
    let ram = Ram::new(&RamConfig::new(2 * page())).unwrap();
    ram.add_slot(100 * page(), 2 * page(), &shared).unwrap();
    assert_eq!(cleared(&ram), [0, 0, 0xaa, 0xaa]);
    let shared = Backing::File(FileBacking::shared(file(4), 0));
    assert_eq!(cleared(&Ram::new(&RamConfig::new(2 * page()).backing(shared)).unwrap()), [0, 0]);
}

#[test]
fn what_the_kernel_was_asked_to_do_with_it_stays() {
    let ram = Ram::new(&RamConfig::new(4 * MIB).prefault(true)).unwrap();
    let at = ram.slots().next().unwrap().host_addr;
    let flags = || {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !covers(line, at));
        lines.find(|line| line.starts_with("VmFlags:")).unwrap().to_owned()
    };
    let before = flags();
    assert!(before.split_whitespace().any(|flag| flag == "dd"));
    ram.clear().unwrap();
    assert_eq!(flags(), before);
    assert_eq!(resident(&ram.slots().next().unwrap()) as u64, 4 * MIB / page());
}
