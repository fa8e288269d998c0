use std::io::Write;

use super::*;

#[test]
fn pages_of_zeros_in_memory_are_left_alone() {
    // From the middle of one page to the middle of the fifth; the second and the fourth are zero.
    let mut image = vec![0; 0x4000];
    image[0x7ff] = 1;
    image[0x1800] = 2;
    image[0x3fff] = 3;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    for (source, all) in [(ImageSource::Bytes(&image), false), (ImageSource::File(&file), true)] {
        let mem = GuestMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let read = |addr, len| {
            let mut bytes = vec![0; len];
            mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
            bytes
        };
        mem.write_slice(&[0xee; 0x10000], GuestAddress(0)).unwrap();
        let written = source.copy_to_guest(0, 0x4000, &mem, GuestAddress(0x1800)).unwrap();
        assert_eq!(written, if all { 0x4000 } else { 0x2000 });
        let untouched = vec![if all { 0 } else { 0xee }; 0x1000];
        assert_eq!(read(0x1000, 0x800), [0xee; 0x800]);
        assert_eq!(read(0x1800, 0x800), image[..0x800]);
        assert_eq!(read(0x2000, 0x1000), untouched);
        assert_eq!(read(0x3000, 0x1000), image[0x1800..0x2800]);
        assert_eq!(read(0x4000, 0x1000), untouched);
        assert_eq!(read(0x5000, 0x800), image[0x3800..]);
        assert_eq!(read(0x5800, 0x800), [0xee; 0x800]);
    }
}

#[test]
fn ranges_behind_the_end_are_errors() {
    let mem = GuestMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let source = ImageSource::Bytes(&[1; 16]);
    for (offset, len) in [(0, 17), (16, 1), (u64::MAX, 2), (1, u64::MAX)] {
        let result = source.copy_to_guest(offset, len, &mem, GuestAddress(0));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    assert!(source.copy_to_guest(0, 16, &mem, GuestAddress(0xff8)).is_err());
}
