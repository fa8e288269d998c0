use std::io::Write;
use std::os::unix::fs::FileExt;

use super::*;
use crate::{Backing, Dma, Ram, RamConfig};

const MIB: u64 = 1 << 20;

/// A file of this many pages, each filled with its number from 1 on, and `more` bytes of 0xee.
fn file(pages: u8, more: usize) -> File {
    let mut file = tempfile::tempfile().unwrap();
    for page in 1..=pages {
        file.write_all(&[page; 0x1000]).unwrap();
    }
    file.write_all(&vec![0xee; more]).unwrap();
    file
}

fn piece(addr: u64, offset: u64, len: u64) -> FilePiece {
    FilePiece { addr: GuestAddress(addr), offset, len }
}

fn byte(dma: &Dma, addr: u64) -> u8 {
    dma.read_obj(GuestAddress(addr)).unwrap()
}

#[test]
fn a_file_shows_up_where_it_was_mapped_and_nowhere_else() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let dma = ram.dma();
    dma.write(GuestAddress(0), &[0xaa; MIB as usize]).unwrap();
    let file = file(3, 0x10);
    let pieces = [piece(0x8000, 0x1000, 0x1000), piece(0x1_0000, 0, 0), piece(0x2_0000, 0x2000, 0x1010)];
    map_file(&ram.map(), &file, &pieces).unwrap();
    let around = [0x7fff, 0x8000, 0x8fff, 0x9000, 0x1_0000, 0x2_0000, 0x2_100f, 0x2_1010, 0x2_1fff, 0x2_2000];
    assert_eq!(around.map(|addr| byte(&dma, addr)), [0xaa, 2, 2, 0xaa, 0xaa, 3, 0xee, 0, 0, 0xaa]);
}

#[test]
fn writes_stay_in_the_guest() {
    let file = file(2, 0);
    let rams = [0, 1].map(|_| Ram::new(&RamConfig::new(MIB)).unwrap());
    for ram in &rams {
        map_file(&ram.map(), &file, &[piece(0x4000, 0, 0x2000)]).unwrap();
    }
    rams[0].dma().write(GuestAddress(0x4ffc), &[0x55; 8]).unwrap();
    let seen = |ram: &Ram| [0x4ffb, 0x4ffc, 0x5003, 0x5004].map(|addr| byte(&ram.dma(), addr));
    assert_eq!(seen(&rams[0]), [1, 0x55, 0x55, 2]);
    assert_eq!(seen(&rams[1]), [1, 1, 2, 2]);
    let mut on_disk = [0; 2];
    file.read_exact_at(&mut on_disk, 0xfff).unwrap();
    assert_eq!(on_disk, [1, 2]);
}

#[test]
fn views_that_exist_see_the_file_and_keep_it_mapped() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let window = ram.dma().window(GuestAddress(0x4000), 0x1000).unwrap();
    map_file(&ram.map(), &file(1, 0), &[piece(0x4000, 0, 0x1000)]).unwrap();
    drop(ram);
    assert_eq!(window.read_obj::<[u8; 2]>(0xffe).unwrap(), [1, 1]);
}

#[test]
fn on_both_sides_of_the_gap() {
    let ram = Ram::new(&RamConfig::new(2 * MIB).gap(MIB..4 * MIB)).unwrap();
    let pieces = [piece(MIB - 0x1000, 0, 0x1000), piece(4 * MIB, 0x1000, 0x1000)];
    map_file(&ram.map(), &file(2, 0), &pieces).unwrap();
    let dma = ram.dma();
    let around = [MIB - 0x1001, MIB - 1, 4 * MIB, 4 * MIB + 0x1000];
    assert_eq!(around.map(|addr| byte(&dma, addr)), [0, 1, 2, 0]);
}

#[test]
fn mapped_pages_are_dirty_pages() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let mut log = crate::DirtyLog::start(&ram).unwrap();
    map_file(&ram.map(), &file(2, 0), &[piece(0x3000, 0, 0x1800)]).unwrap();
    assert!(log.take().ranges().eq(std::iter::once(0x3000..0x5000)));
}

#[test]
fn core_dumps_contain_it_only_if_they_contain_ram() {
    for dump in [false, true] {
        let ram = Ram::new(&RamConfig::new(MIB).dump(dump)).unwrap();
        map_file(&ram.map(), &file(2, 0), &[piece(0x9000, 0, 0x2000), piece(0x3000, 0, 0x1000)]).unwrap();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        for addr in [0x3000, 0x9000] {
            let start = ram.slots().next().unwrap().host_addr + addr;
            let of_file = smaps.split_once(&format!("{start:x}-")).unwrap().1;
            let flags = of_file.lines().find(|line| line.starts_with("VmFlags:")).unwrap();
            assert_eq!(flags.split(' ').any(|flag| flag == "dd"), !dump, "{flags}");
        }
    }
}

#[test]
fn memory_that_is_not_private_base_pages_is_refused_by_name() {
    let refused = |mem: &GuestMmap| {
        let error = map_file(mem, &file(1, 0), &[piece(0, 0, 0x1000)]).unwrap_err();
        let MapFileError::Backing { is } = error else { panic!("{error}") };
        is
    };
    let memfd = Ram::new(&RamConfig::new(MIB).backing(Backing::Memfd)).unwrap();
    assert_eq!(refused(&memfd.map()), "shared");
    let prefaulted = Ram::new(&RamConfig::new(MIB).prefault(true)).unwrap();
    assert_eq!(refused(&prefaulted.map()), "prefaulted");
    let foreign = GuestMmap::from_ranges(&[(GuestAddress(0), MIB as usize)]).unwrap();
    assert_eq!(refused(&foreign), "not made by this crate");
}

#[test]
fn c3_pieces_that_are_not_pages_or_not_ram_are_refused() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let try_piece = |addr, offset, len| map_file(&ram.map(), &file(1, 0), &[piece(addr, offset, len)]);
    for (addr, offset) in [(0x1001, 0), (0x1000, 1), (0x1800, 0x800)] {
        assert!(matches!(try_piece(addr, offset, 1), Err(MapFileError::Misaligned { .. })));
    }
    for (addr, len) in [(MIB, 1), (MIB - 0x1000, 0x1001), (0, u64::MAX), (0, MIB + 1), (u64::MAX << 12, 1)] {
        assert!(matches!(try_piece(addr, 0, len), Err(MapFileError::NotRam { .. })));
    }
    assert!(matches!(try_piece(0, 1 << 63, 1), Err(MapFileError::Host { call: "mmap", .. })));
}

#[test]
fn c3_a_file_that_is_too_short_is_refused_before_anybody_touches_it() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let error = map_file(&ram.map(), &file(1, 1), &[piece(0, 0, 0x1002)]).unwrap_err();
    assert!(matches!(error, MapFileError::Truncated { needs: 0x1002, has: 0x1001 }), "{error}");
    let error = map_file(&ram.map(), &file(1, 0), &[piece(0, i64::MAX as u64 & !0xfff, 1)]).unwrap_err();
    assert!(
        matches!(error, MapFileError::Truncated { has: 0x1000, .. } | MapFileError::Host { .. }),
        "{error}"
    );
}

#[test]
fn what_cannot_be_mapped_leaves_ram_as_ram() {
    let ram = Ram::new(&RamConfig::new(MIB)).unwrap();
    let (socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
    let socket = File::from(std::os::fd::OwnedFd::from(socket));
    for file in [socket, File::open("/proc/self/status").unwrap()] {
        let error = map_file(&ram.map(), &file, &[piece(0x1000, 0, 0x1000)]).unwrap_err();
        assert!(matches!(error, MapFileError::Host { .. }), "{error}");
        ram.dma().write(GuestAddress(0), &[1; 0x4000]).unwrap();
    }
}
