//! RAM from a caller's file.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use super::*;
use crate::FileBacking;

/// A file whose pages are filled with their numbers, from 1 on.
pub(super) fn file(pages: u8) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for page in 1..=pages {
        file.write_all(&vec![page; host_page_size()]).unwrap();
    }
    file
}

fn page() -> u64 {
    host_page_size() as u64
}

fn ram(backing: FileBacking, pages: u64) -> Result<Ram, RamError> {
    Ram::new(&RamConfig::new(pages * page()).backing(Backing::File(backing)))
}

fn first_bytes(ram: &Ram) -> Vec<u8> {
    let dma = ram.dma();
    (0..ram.size() / page()).map(|at| dma.read_obj(GuestAddress(at * page())).unwrap()).collect()
}

#[test]
fn a_private_file_is_each_guests_own_copy() {
    let file = file(4);
    let rams = [1, 2].map(|at| ram(FileBacking::private(file.try_clone().unwrap(), at * page()), 2).unwrap());
    assert_eq!(rams.each_ref().map(first_bytes), [[2, 3], [3, 4]]);
    rams[0].dma().write(GuestAddress(page()), &[0x55]).unwrap();
    assert_eq!(rams.each_ref().map(first_bytes), [[2, 0x55], [3, 4]]);
    let mut on_disk = [0];
    file.read_exact_at(&mut on_disk, 2 * page()).unwrap();
    assert_eq!(on_disk, [3]);
    // Nobody else can map what the guest writes.
    assert!(rams[0].slots().all(|slot| slot.file().is_none()));
}

#[test]
fn a_shared_file_is_the_file() {
    let file = file(4);
    let pair = [(); 2].map(|()| ram(FileBacking::shared(file.try_clone().unwrap(), page()), 2).unwrap());
    pair[0].dma().write(GuestAddress(page()), &[0x55]).unwrap();
    assert_eq!(pair.each_ref().map(first_bytes), [[2, 0x55]; 2]);
    file.write_all_at(&[0x66], page()).unwrap();
    assert_eq!(pair.each_ref().map(first_bytes), [[0x66, 0x55]; 2]);
    let mut on_disk = [0];
    file.read_exact_at(&mut on_disk, 2 * page()).unwrap();
    assert_eq!(on_disk, [0x55]);
    assert!(pair[0].slots().all(|slot| slot.file().unwrap().start() == page()));
}

#[test]
fn the_offset_goes_on_behind_the_gap() {
    let backing = Backing::File(FileBacking::shared(file(4), page()));
    let config = RamConfig::new(3 * page()).backing(backing).gap(page()..8 * page());
    let ram = Ram::new(&config).unwrap();
    let starts: Vec<_> = ram.slots().map(|slot| slot.file().unwrap().start()).collect();
    assert_eq!(starts, [page(), 2 * page()]);
    assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(9 * page())).unwrap(), 4);
}

#[test]
fn a_memfd_of_the_callers() {
    let first = Ram::new(&RamConfig::new(4 * page()).backing(Backing::Memfd)).unwrap();
    let fd = first.slots().next().unwrap().file().unwrap().file().as_fd().try_clone_to_owned().unwrap();
    let second = ram(FileBacking::shared(fd, 0), 4).unwrap();
    first.dma().write(GuestAddress(3 * page()), &[9]).unwrap();
    assert_eq!(first_bytes(&second), [0, 0, 0, 9]);
}

#[test]
fn more_than_the_host_has_is_refused_where_it_would_be_the_hosts() {
    let sparse = tempfile::tempfile().unwrap();
    let pages = host::total_memory() / page() + 1;
    sparse.set_len(pages * page()).unwrap();
    let private = ram(FileBacking::private(sparse.try_clone().unwrap(), 0), pages);
    assert!(matches!(private, Err(RamError::HostMemory { .. })));
    ram(FileBacking::shared(sparse, 0), pages).unwrap();
}

#[test]
fn c3_a_file_that_is_too_short_is_told_with_both_sizes() {
    for shared in [false, true] {
        let new: fn(File, u64) -> FileBacking =
            if shared { FileBacking::shared } else { FileBacking::private };
        let refuse = |offset, pages| ram(new(file(3), offset), pages).unwrap_err();
        let error = refuse(page(), 3);
        assert!(
            matches!(error, RamError::FileTooShort { needs, has } if (needs, has) == (4 * page(), 3 * page()))
        );
        let text = error.to_string();
        assert!(text.contains(&format!("{} bytes, {} are", 3 * page(), 4 * page())), "{text}");
        let error = refuse(u64::MAX - (page() - 1), 1);
        assert!(matches!(error, RamError::FileTooShort { .. }), "{error}");
        let cut = file(3);
        cut.set_len(3 * page() - 1).unwrap();
        let error = ram(new(cut, 0), 3).unwrap_err();
        assert!(matches!(error, RamError::FileTooShort { has, .. } if has == 3 * page() - 1), "{error}");
    }
}

#[test]
fn an_offset_within_a_page_is_refused() {
    let error = ram(FileBacking::private(file(3), 512), 1).unwrap_err();
    assert!(
        matches!(error, RamError::FileOffset { offset: 512, page_size } if page_size == page()),
        "{error}"
    );
}

#[test]
fn what_cannot_be_mapped_is_refused() {
    let refuse = |backing| {
        let error = ram(backing, 1).unwrap_err();
        assert!(matches!(error, RamError::FileNotMappable { .. }), "{error}");
    };
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    refuse(FileBacking::private(OwnedFd::from(socket), 0));
    let named = tempfile::NamedTempFile::new().unwrap();
    named.as_file().set_len(page()).unwrap();
    let read_only = || File::open(named.path()).unwrap();
    refuse(FileBacking::shared(read_only(), 0));
    ram(FileBacking::private(read_only(), 0), 1).unwrap();
    let write_only = File::options().write(true).open(named.path()).unwrap();
    refuse(FileBacking::private(write_only, 0));
}

#[test]
fn huge_pages_of_the_callers_are_shared_and_never_copied() {
    // Where the host has no pool, there is nothing to share.
    let Ok(first) = Ram::new(&RamConfig::new(4 * MIB).backing(Backing::Huge2M)) else { return };
    let file = first.slots().next().unwrap().file().unwrap().clone();
    let fd = || file.file().try_clone().unwrap();
    let config = |backing, size| RamConfig::new(size).backing(Backing::File(backing));
    let second = Ram::new(&config(FileBacking::shared(fd(), 2 * MIB), 2 * MIB)).unwrap();
    first.dma().write(GuestAddress(2 * MIB), &[9]).unwrap();
    assert_eq!(second.dma().read_obj::<u8>(GuestAddress(0)).unwrap(), 9);
    let error = Ram::new(&config(FileBacking::shared(fd(), page()), 2 * MIB)).unwrap_err();
    assert!(matches!(error, RamError::FileOffset { page_size, .. } if page_size == 2 * MIB), "{error}");
    let error = Ram::new(&config(FileBacking::shared(fd(), 0), MIB)).unwrap_err();
    assert!(matches!(error, RamError::Unaligned { page_size, .. } if page_size == 2 * MIB), "{error}");
    let error = Ram::new(&config(FileBacking::private(fd(), 0), 2 * MIB)).unwrap_err();
    assert!(matches!(error, RamError::FileNotMappable { shared: false, .. }), "{error}");
}
