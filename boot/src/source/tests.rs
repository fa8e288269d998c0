use std::io::Write;

use super::*;

#[test]
fn pages_of_zeros_are_left_alone() {
    // From the middle of one page to the middle of the fifth; the second and the fourth are zero.
    let mut image = vec![0; 0x4000];
    image[0x7ff] = 1;
    image[0x1800] = 2;
    image[0x3fff] = 3;
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&image).unwrap();
    for (source, dense) in
        [(Source::Bytes(&image), false), (Source::File(&file), false), (Source::File(&file), true)]
    {
        let mem = GuestMmap::from_ranges(&[(GuestAddress(0), 0x10000)]).unwrap();
        let read = |addr, len| {
            let mut bytes = vec![0; len];
            mem.read_slice(&mut bytes, GuestAddress(addr)).unwrap();
            bytes
        };
        mem.write_slice(&[0xee; 0x10000], GuestAddress(0)).unwrap();
        let written = source.copy_to_guest(0, 0x4000, dense, &mem, GuestAddress(0x1800)).unwrap();
        assert_eq!(written, if dense { 0x4000 } else { 0x2000 });
        let untouched = vec![if dense { 0 } else { 0xee }; 0x1000];
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
fn a_file_larger_than_the_buffer_is_copied_whole() {
    let len = READ + 0x1800;
    let file = tempfile::tempfile().unwrap();
    file.set_len(len).unwrap();
    let marks = [0, READ - 1, READ, len - 1];
    for mark in marks {
        file.write_all_at(&[7], mark).unwrap();
    }
    let mem = GuestMmap::from_ranges(&[(GuestAddress(0), READ as usize + 0x4000)]).unwrap();
    let written = Source::File(&file).copy_to_guest(0, len, false, &mem, GuestAddress(0x1000)).unwrap();
    assert_eq!(written, 3 * 0x1000 + 0x800);
    for mark in marks {
        assert_eq!(mem.read_obj::<u8>(GuestAddress(0x1000 + mark)).unwrap(), 7);
    }
}

#[test]
fn ranges_behind_the_end_are_errors() {
    let mem = GuestMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
    let source = Source::Bytes(&[1; 16]);
    for (offset, len) in [(0, 17), (16, 1), (u64::MAX, 2), (1, u64::MAX)] {
        let result = source.copy_to_guest(offset, len, false, &mem, GuestAddress(0));
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
    assert!(source.copy_to_guest(0, 16, false, &mem, GuestAddress(0xff8)).is_err());
}
