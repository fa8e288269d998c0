use super::*;
use crate::{Ram, RamConfig, Segment};

const MIB: u64 = 1 << 20;

fn dma() -> Dma {
    Ram::new(&RamConfig::new(2 * MIB).gap(MIB..2 * MIB)).unwrap().dma()
}

fn seg(addr: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(addr), len }
}

#[test]
fn b9_only_ram_is_reached() {
    let dma = dma();
    for (addr, len) in
        [(MIB - 1, 2), (MIB, 1), (2 * MIB - 4, 8), (3 * MIB - 1, 2), (3 * MIB, 1), (u64::MAX, 1)]
    {
        let error = DmaError::NotRam { addr, len: len as u64 };
        let at = GuestAddress(addr);
        assert_eq!(dma.check(at, len as u64), Err(error));
        assert_eq!(dma.read(at, &mut vec![0; len]), Err(error));
        assert_eq!(dma.write(at, &vec![0; len]), Err(error));
    }
    assert!(dma.check(GuestAddress(1), u64::MAX).is_err());
    assert!(dma.read_obj::<u64>(GuestAddress(u64::MAX - 3)).is_err());
    assert!(dma.load::<u32>(GuestAddress(MIB), Ordering::Acquire).is_err());
    assert!(dma.store(GuestAddress(u64::MAX - 3), 0u32, Ordering::Release).is_err());
}

#[test]
fn a_refused_write_changes_nothing() {
    let dma = dma();
    assert!(dma.write(GuestAddress(MIB - 2), b"xxxx").is_err());
    assert_eq!(dma.read_obj::<u16>(GuestAddress(MIB - 2)).unwrap(), 0);
}

#[test]
fn ranges_of_length_zero_are_ram_everywhere() {
    let dma = dma();
    dma.check(GuestAddress(MIB), 0).unwrap();
    dma.write(GuestAddress(u64::MAX), b"").unwrap();
    dma.read(GuestAddress(MIB), &mut []).unwrap();
}

#[test]
fn integers_are_loaded_and_stored() {
    let dma = dma();
    dma.store(GuestAddress(0x10), 0x1234u16, Ordering::Release).unwrap();
    assert_eq!(dma.load::<u16>(GuestAddress(0x10), Ordering::Acquire).unwrap(), 0x1234);
    assert_eq!(dma.read_obj::<[u8; 2]>(GuestAddress(0x10)).unwrap(), 0x1234u16.to_ne_bytes());
}

#[test]
fn copies_are_bounded_by_the_shorter_side() {
    let dma = dma();
    let list = [seg(0x10, 4), seg(2 * MIB, 3), seg(0x30, 0), seg(0x20, 5)];
    assert_eq!(dma.scatter(&list, b"abcdefgh").unwrap(), 8);
    assert_eq!(&dma.read_obj::<[u8; 4]>(GuestAddress(0x10)).unwrap(), b"abcd");
    assert_eq!(&dma.read_obj::<[u8; 3]>(GuestAddress(2 * MIB)).unwrap(), b"efg");
    assert_eq!(&dma.read_obj::<[u8; 5]>(GuestAddress(0x20)).unwrap(), b"h\0\0\0\0");
    let mut long = [0xff; 16];
    assert_eq!(dma.gather(&list, &mut long).unwrap(), 12);
    assert_eq!(&long, b"abcdefgh\0\0\0\0\xff\xff\xff\xff");
    let mut short = [0; 5];
    assert_eq!(dma.gather(Segments::from(&list).skip(2), &mut short).unwrap(), 5);
    assert_eq!(&short, b"cdefg");
}

#[test]
fn segments_that_are_not_ram_are_errors_only_where_they_are_reached() {
    let dma = dma();
    let list = [seg(0x10, 4), seg(MIB, 4)];
    assert_eq!(dma.scatter(&list, b"abcd").unwrap(), 4);
    assert!(dma.scatter(&list, b"abcde").is_err());
    assert!(dma.gather(&list, &mut [0; 8]).is_err());
}

#[test]
fn a_value_is_gathered_from_one_piece_or_several() {
    let dma = dma();
    dma.write(GuestAddress(0x10), b"abcdefgh").unwrap();
    let gather = |list: &[Segment]| dma.gather_obj::<[u8; 4]>(list);
    assert_eq!(gather(&[seg(0x10, 4)]), Ok(Some(*b"abcd")));
    assert_eq!(gather(&[seg(0x10, 0), seg(0x11, 9)]), Ok(Some(*b"bcde")));
    assert_eq!(gather(&[seg(0x10, 1), seg(0x14, 3)]), Ok(Some(*b"aefg")));
    assert_eq!(gather(&[seg(0x10, 1), seg(0x14, 2)]), Ok(None));
    assert_eq!(gather(&[]), Ok(None));
    assert!(gather(&[seg(MIB, 4)]).is_err());
    assert!(gather(&[seg(0x10, 1), seg(MIB, 3)]).is_err());
    let list = [seg(0x10, 8)];
    assert_eq!(dma.gather_obj::<[u8; 4]>(Segments::from(&list).skip(3)), Ok(Some(*b"defg")));
    assert_eq!(dma.gather_obj::<[u8; 4]>(Segments::from(&list).take(3)), Ok(None));
    assert_eq!(dma.gather_obj::<[u8; 4]>(Segments::first_bytes(&list, 4)), Ok(Some(*b"abcd")));
}

#[test]
fn a_value_is_scattered_to_one_piece_or_several() {
    let dma = dma();
    let written = || dma.read_obj::<[u8; 8]>(GuestAddress(0x10)).unwrap();
    assert_eq!(dma.scatter_obj(&[seg(0x10, 8)], *b"abcd"), Ok(4));
    assert_eq!(&written(), b"abcd\0\0\0\0");
    assert_eq!(dma.scatter_obj(&[seg(0x10, 1), seg(0x12, 3)], *b"efgh"), Ok(4));
    assert_eq!(&written(), b"ebfgh\0\0\0");
    assert_eq!(dma.scatter_obj(&[seg(0x16, 2)], *b"ijkl"), Ok(2));
    assert_eq!(&written(), b"ebfgh\0ij");
    let list = [seg(0x10, 8)];
    assert_eq!(dma.scatter_obj(Segments::from(&list).skip(7), b'm'), Ok(1));
    assert_eq!(&written(), b"ebfgh\0im");
    assert!(dma.scatter_obj(&[seg(MIB, 4)], 0u32).is_err());
}

/// Regions at 1 to 2 MiB and 2 to 3 MiB, and one from 4 MiB on.
fn regions() -> Dma {
    let at = |mib: u64| (GuestAddress(mib * MIB), MIB as usize);
    Dma::new(Arc::new(GuestMmap::from_ranges(&[at(1), at(2), at(4)]).unwrap()))
}

#[test]
fn runs_go_across_regions_that_touch() {
    let dma = regions();
    let run = |addr| dma.run(GuestAddress(addr));
    let first = run(MIB).unwrap();
    assert_eq!(run(3 * MIB - 1), Ok(first));
    let last = run(4 * MIB).unwrap();
    assert_ne!(last, first);
    for addr in [0, MIB - 1, 3 * MIB, 5 * MIB, u64::MAX] {
        assert_eq!(run(addr), Err(DmaError::NotRam { addr, len: 1 }));
        assert!(!first.holds(GuestAddress(addr), 1) && !last.holds(GuestAddress(addr), 1));
    }
    let holds = |addr, len| first.holds(GuestAddress(addr), len);
    assert!(holds(MIB, 2 * MIB) && holds(3 * MIB - 1, 1));
    assert!(!holds(MIB, 2 * MIB + 1) && !holds(3 * MIB - 1, 2) && !holds(MIB + 1, u64::MAX));
    assert!(!holds(MIB, 0));
}

#[test]
fn a_view_lies_in_one_region() {
    let dma = regions();
    dma.write(GuestAddress(3 * MIB - 4), b"abcd").unwrap();
    let view = dma.view(GuestAddress(3 * MIB - 4), 4).unwrap();
    assert_eq!(view.read_obj::<[u8; 4]>(0), Some(*b"abcd"));
    assert_eq!(view.read_obj::<[u8; 3]>(1), Some(*b"bcd"));
    assert_eq!(view.read_obj::<u8>(4), None);
    assert_eq!(view.read_obj::<[u8; 3]>(2), None);
    assert_eq!(view.read_obj::<u16>(usize::MAX), None);
    for (addr, len) in [(MIB - 1, 1), (2 * MIB - 1, 2), (3 * MIB, 1), (3 * MIB - 1, 2), (4 * MIB, usize::MAX)]
    {
        assert!(dma.view(GuestAddress(addr), len).is_none());
    }
}

#[test]
fn values_lie_across_regions_too() {
    let dma = regions();
    let at = GuestAddress(2 * MIB - 3);
    dma.write_obj(at, 0x1122_3344_5566_7788u64).unwrap();
    assert_eq!(dma.read_obj::<u64>(at), Ok(0x1122_3344_5566_7788));
    assert_eq!(dma.gather_obj::<u64>(&[seg(at.0, 8)]), Ok(Some(0x1122_3344_5566_7788)));
    assert_eq!(
        dma.load::<u32>(GuestAddress(2 * MIB - 2), Ordering::Relaxed),
        Err(DmaError::Misaligned { addr: 2 * MIB - 2, align: 4 })
    );
}
