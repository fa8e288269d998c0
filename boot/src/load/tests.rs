use std::io::Write;

use ossature_memory::{Backing, Ram, RamConfig};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

use super::*;

/// Bytes that name their place in the file, none of them zero.
fn byte(at: u64) -> u8 {
    (at % 251) as u8 + 1
}

/// `bytes` bytes, then zeros up to `len`.
fn image(bytes: u64, len: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    let content: Vec<u8> = (0..bytes).map(byte).chain((bytes..len).map(|_| 0)).collect();
    file.write_all(&content).unwrap();
    file
}

fn ram() -> Ram {
    Ram::new(&RamConfig::new(1 << 20)).unwrap()
}

fn segment(file_offset: u64, file_len: u64, guest_addr: u64, mem_len: u64) -> LoadSegment {
    LoadSegment { file_offset, file_len, guest_addr, mem_len }
}

/// All of guest memory.
fn contents(mem: &GuestMmap) -> Vec<u8> {
    let mut all = vec![0; mem.iter().map(|region| region.len() as usize).sum()];
    mem.read_slice(&mut all, GuestAddress(0)).unwrap();
    all
}

/// Loads both ways, which must not make a difference in memory; returns what was mapped and what was copied.
fn load_both(file: &File, segments: &[LoadSegment]) -> (u64, u64) {
    let (copied, mapped) = (ram(), ram());
    let count = load(&ImageSource::File(file), segments, &copied.map()).unwrap();
    let bytes = segments.iter().map(|segment| segment.file_len).sum::<u64>();
    assert_eq!(count, Loaded { mapped: 0, copied: bytes });
    let count = load(&ImageSource::Mapped(file), segments, &mapped.map()).unwrap();
    assert!(contents(&copied.map()) == contents(&mapped.map()), "the two ways differ: {segments:x?}");
    assert_eq!(count.mapped + count.copied, bytes);
    (count.mapped, count.copied)
}

#[test]
fn nothing_of_whole_pages_is_copied() {
    let file = image(0x4000, 0x4000);
    let segments = [segment(0x1000, 0x2000, 0x1_0000, 0x2000), segment(0x3000, 0x1000, 0x1_2000, 0x1000)];
    assert_eq!(load_both(&file, &segments), (0x3000, 0));
}

#[test]
fn a_last_page_is_mapped_only_if_the_rest_of_it_is_zero_in_the_file() {
    // The file ends there; it has zeros there; it has something else there.
    for (bytes, len, mapped) in [(0x1800, 0x1800, 0x1800), (0x1800, 0x3000, 0x1800), (0x3000, 0x3000, 0x1000)]
    {
        let file = image(bytes, len);
        let segments = [segment(0, 0x1800, 0x1_0000, 0x4000)];
        assert_eq!(load_both(&file, &segments), (mapped, 0x1800 - mapped));
    }
}

#[test]
fn a_last_page_is_mapped_only_if_no_other_segment_has_a_part_of_it() {
    let file = image(0x1800, 0x4000);
    file.write_all_at(&[1; 0x10], 0x2900).unwrap();
    let neighbour = segment(0x2900, 0x10, 0x1_1900, 0x10);
    assert_eq!(load_both(&file, &[segment(0, 0x1800, 0x1_0000, 0x1800), neighbour]), (0x1000, 0x810));
    let (elsewhere, empty) = (segment(0x2900, 0x10, 0x1_2900, 0x10), segment(0, 0, 0x1_1900, 0));
    let segments = [segment(0, 0x1800, 0x1_0000, 0x1800), elsewhere, empty];
    assert_eq!(load_both(&file, &segments), (0x1800, 0x10));
    // Memory that has to read as zero is a part, too.
    let bss = segment(0, 0, 0x1_1900, 0x100);
    assert_eq!(load_both(&file, &[segment(0, 0x1800, 0x1_0000, 0x1800), bss]), (0x1000, 0x800));
}

#[test]
fn a_segment_may_begin_anywhere_in_its_page() {
    let file = image(0x8000, 0x8000);
    assert_eq!(load_both(&file, &[segment(0x1234, 0x3000, 0x1_0234, 0x3000)]), (0x2000, 0x1000));
    // It does not reach the next page.
    assert_eq!(load_both(&file, &[segment(0x1234, 0xdcc, 0x1_0234, 0x3000)]), (0, 0xdcc));
    assert_eq!(load_both(&file, &[segment(0x1234, 0xdcd, 0x1_0234, 0x3000)]), (0, 0xdcd));
}

#[test]
fn c3_a_segment_whose_pages_do_not_meet_the_guests_is_copied() {
    let file = image(0x8000, 0x8000);
    assert_eq!(load_both(&file, &[segment(0x1001, 0x3000, 0x1_0000, 0x3000)]), (0, 0x3000));
    assert_eq!(load_both(&file, &[segment(0x1000, 0x3000, 0x1_0008, 0x3000)]), (0, 0x3000));
}

#[test]
fn c3_of_overlapping_segments_the_last_one_wins_either_way() {
    let file = image(0x8000, 0x8000);
    let (whole, part) = (segment(0, 0x4000, 0x1_0000, 0x4000), segment(0x5000, 0x1000, 0x1_1000, 0x1000));
    for segments in [[whole, part], [part, whole], [whole, whole]] {
        assert_eq!(load_both(&file, &segments).0, 0);
    }
    // With memory that has to read as zero, too: what is loaded into it stays.
    assert_eq!(load_both(&file, &[segment(0, 0x1000, 0x1_0000, 0x4000), part]).0, 0);
}

#[test]
fn guest_memory_that_cannot_be_mapped_over_is_an_error_that_says_so() {
    let shared = Ram::new(&RamConfig::new(1 << 20).backing(Backing::Memfd)).unwrap();
    let file = image(0x1000, 0x1000);
    let error =
        load(&ImageSource::Mapped(&file), &[segment(0, 0x1000, 0, 0x1000)], &shared.map()).unwrap_err();
    assert!(error.to_string().contains("shared"), "{error}");
}

#[test]
fn what_is_mapped_are_whole_pages_of_the_host_whatever_their_size() {
    let file = image(0x4_0000, 0x4_0000);
    for page in [0x1000, 0x4000, 0x1_0000] {
        // Both begin and end in the middle of a page of any size.
        let one = segment(0x800, 0x3_1000, 0x5_0800, 0x3_1000);
        let mut copies = Vec::new();
        let piece = split(&one, &[one], (&file, page), &mut copies).unwrap().unwrap();
        assert_eq!((piece.offset, piece.addr.0), (page, 0x5_0000 + page));
        assert_eq!(piece.len, 0x3_0000 + 0x1800 - page - 0x1800 % page, "pages of {page:#x}");
        let copied: Vec<_> = copies.iter().map(|copy| (copy.guest_addr, copy.file_len)).collect();
        let tail = 0x1800 % page;
        assert_eq!(copied, [(0x5_0800, page - 0x800), (0x8_1800 - tail, tail)]);
        // In the middle of pages of 4 KiB for one and of larger ones for the other.
        let other = segment(0x1000, 0x3_0000, 0x5_0000, 0x3_0000);
        let mut copies = Vec::new();
        let piece = split(&other, &[other], (&file, page), &mut copies).unwrap();
        assert_eq!(piece.is_some(), page == 0x1000);
        if piece.is_none() {
            assert_eq!(copies, [other]);
        }
    }
    assert_eq!(LoadSegment::below(0xc000_0000, 0x5000, 0, 0x1_0000).unwrap().guest_addr, 0xbfff_0000);
}
