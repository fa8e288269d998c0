use super::*;
use crate::{Ram, RamConfig, Segment};

const MIB: u64 = 1 << 20;

fn dma() -> Dma {
    Ram::new(&RamConfig { gap: MIB..2 * MIB, ..RamConfig::new(2 * MIB) }).unwrap().dma()
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
