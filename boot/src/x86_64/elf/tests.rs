use super::*;
use crate::x86_64::testing::{
    DATA, LOAD, PROGRAM_HEADER, PROGRAM_HEADERS, PVH_ENTRY, TEXT, elf, elf_with_notes, note,
};

fn parse(image: &[u8]) -> Result<Elf, KernelError> {
    let head = &image[..image.len().min(4096)];
    Elf::parse(&ImageSource::Bytes(image), image.len() as u64, head)
}

/// The image of [`elf`] with `bytes` at `offset`.
fn patched(offset: usize, bytes: &[u8]) -> Vec<u8> {
    let mut image = elf();
    image[offset..offset + bytes.len()].copy_from_slice(bytes);
    image
}

#[test]
fn segments_and_both_entries_are_found() {
    let elf = parse(&elf()).unwrap();
    let text =
        LoadSegment { file_offset: 0x1000, file_len: TEXT.len() as u64, guest_addr: LOAD, mem_len: 0x1000 };
    let data = LoadSegment {
        file_offset: 0x2000,
        file_len: DATA.len() as u64,
        guest_addr: LOAD + 0x20_0000,
        mem_len: 0x3000,
    };
    assert_eq!(elf.segments, [text, data]);
    assert_eq!((elf.entry, elf.pvh_entry), (LOAD, Some(PVH_ENTRY)));
}

#[test]
fn program_headers_far_from_the_head_are_read() {
    let mut image = elf();
    let headers = image[PROGRAM_HEADERS..PROGRAM_HEADERS + 3 * PROGRAM_HEADER].to_vec();
    image.resize(0x8000, 0);
    image.extend(headers);
    image[32..40].copy_from_slice(&0x8000u64.to_le_bytes());
    image[PROGRAM_HEADERS..PROGRAM_HEADERS + 3 * PROGRAM_HEADER].fill(0xff);
    assert_eq!(parse(&image).unwrap().segments.len(), 2);
}

#[test]
fn other_architectures_are_named() {
    for (machine, name) in
        [(183u16, "AArch64"), (40, "32-bit Arm"), (9999, "an architecture other than x86_64")]
    {
        let error = parse(&patched(18, &machine.to_le_bytes())).unwrap_err();
        assert!(matches!(error, KernelError::WrongArchitecture { found } if found == name), "{error}");
    }
    let error = parse(&patched(5, &[2])).unwrap_err();
    assert!(matches!(error, KernelError::WrongArchitecture { found: "a big-endian architecture" }));
}

#[test]
fn headers_that_lie_are_named() {
    let cases: [(usize, &[u8], &str); 7] = [
        (4, &[0], "class"),
        // ELF64 is of x86_64 only; what was the middle of a longer header is no size of a program header.
        (18, &[3], "class"),
        (4, &[1], "program header size"),
        (16, &[1, 0], "type"),
        (54, &[57, 0], "program header size"),
        (56, &[0xff, 0xff], "number of program headers"),
        (56, &[0, 0], "number of loadable segments"),
    ];
    for (offset, bytes, expected) in cases {
        let error = parse(&patched(offset, bytes)).unwrap_err();
        assert!(
            matches!(error, KernelError::InvalidElf { field, .. } if field == expected),
            "{expected}: {error}"
        );
    }
}

#[test]
fn c3_elf_offsets_past_the_end() {
    let header = |field: usize, value: u64| patched(PROGRAM_HEADERS + field, &value.to_le_bytes());
    let cases = [
        (patched(32, &u64::MAX.to_le_bytes()), "the program headers"),
        (patched(32, &0x3000u64.to_le_bytes()), "the program headers"),
        (header(8, 0x10_0000), "a segment"),
        (header(8, u64::MAX), "a segment"),
        (header(32, u64::MAX), "a segment"),
        (header(PROGRAM_HEADER + 8, u64::MAX), "the notes"),
        (header(PROGRAM_HEADER + 32, 1 << 40), "the notes"),
    ];
    for (image, expected) in cases {
        let error = parse(&image).unwrap_err();
        assert!(
            matches!(error, KernelError::Truncated { what, .. } if what == expected),
            "{expected}: {error}"
        );
    }
    for len in 0..PROGRAM_HEADERS {
        assert!(matches!(parse(&elf()[..len]), Err(KernelError::Truncated { .. })), "{len}");
    }
}

#[test]
fn c3_elf_sizes_that_do_not_fit() {
    let header = |field: usize, value: u64| patched(PROGRAM_HEADERS + field, &value.to_le_bytes());
    for (image, expected) in [
        (header(40, 1), "segment's size in the file"),
        (header(40, u64::MAX - 0x1000), "segment's size in memory"),
        (header(24, u64::MAX), "segment's size in memory"),
    ] {
        let error = parse(&image).unwrap_err();
        assert!(
            matches!(error, KernelError::InvalidElf { field, .. } if field == expected),
            "{expected}: {error}"
        );
    }
}

#[test]
fn c3_pvh_note_sizes() {
    let entry = |desc: &[u8]| parse(&elf_with_notes(&note(b"Xen\0", 18, desc))).map(|elf| elf.pvh_entry);
    assert_eq!(entry(&PVH_ENTRY.to_le_bytes()).unwrap(), Some(PVH_ENTRY));
    for desc in [&[][..], &[1, 2, 3], &[0; 5], &[0; 12], &[0, 0, 0, 0, 1, 0, 0, 0]] {
        let size = desc.len() as u32;
        assert!(matches!(entry(desc), Err(KernelError::InvalidPvhNote { size: s }) if s == size), "{size}");
    }
    // More notes than any kernel has are not even read.
    let error = parse(&elf_with_notes(&[0; (64 << 10) + 1])).unwrap_err();
    assert!(matches!(error, KernelError::InvalidElf { field: "size of the notes", value: 0x1_0001 }));
    // A descriptor that claims to go on behind the segment.
    let mut notes = note(b"Xen\0", 18, &[0; 4]);
    notes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
    let error = parse(&elf_with_notes(&notes)).unwrap_err();
    assert!(matches!(error, KernelError::InvalidPvhNote { size: u32::MAX }));
}

#[test]
fn notes_of_others_are_passed_over() {
    let mut notes = note(b"Xen\0", 6, b"linux");
    notes.extend(note(b"GNU\0", 18, &[1, 0, 0, 0]));
    assert_eq!(parse(&elf_with_notes(&notes)).unwrap().pvh_entry, None);
    notes.extend(note(b"Xen\0", 18, &[7, 0, 0, 0]));
    assert_eq!(parse(&elf_with_notes(&notes)).unwrap().pvh_entry, Some(7));
    // One that ends in the middle of a header, or claims a name of 4 GiB, ends the search.
    notes.splice(..4, u32::MAX.to_le_bytes());
    assert_eq!(parse(&elf_with_notes(&notes)).unwrap().pvh_entry, None);
    assert_eq!(parse(&elf_with_notes(&[4, 0, 0, 0, 4])).unwrap().pvh_entry, None);
}

#[test]
fn notes_padded_to_eight_bytes_are_found_where_the_segment_says_so() {
    let mut notes = Vec::new();
    notes.extend([5u32, 4, 1].into_iter().flat_map(u32::to_le_bytes));
    // The descriptor starts at a multiple of 8, and so does the next note.
    notes.extend(b"Other\0\0\0\0\0\0\0abcd\0\0\0\0");
    notes.extend([4u32, 4, 18].into_iter().flat_map(u32::to_le_bytes));
    notes.extend(b"Xen\0");
    notes.extend(9u32.to_le_bytes());
    let mut image = elf_with_notes(&notes);
    let align = PROGRAM_HEADERS + PROGRAM_HEADER + 48;
    image[align] = 8;
    assert_eq!(parse(&image).unwrap().pvh_entry, Some(9));
    image[align] = 4;
    assert_eq!(parse(&image).unwrap().pvh_entry, None);
}
