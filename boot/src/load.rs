//! Getting images into guest memory: mapped where that was asked for and pages meet pages, copied where not.

use std::fs::File;
use std::io;
use std::ops::AddAssign;
use std::os::unix::fs::FileExt;

use ossature_memory::{FilePiece, GuestMmap, host_page_size, map_file};
use vm_memory::GuestAddress;

use crate::image::ImageSource;

/// A piece of a kernel image and its place in guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoadSegment {
    /// Where its bytes start in the image.
    pub file_offset: u64,
    /// How many bytes the image holds.
    pub file_len: u64,
    /// Where it goes in guest-physical memory.
    pub guest_addr: u64,
    /// How many bytes it occupies there; those that the image does not hold must read as zero.
    pub mem_len: u64,
}

impl LoadSegment {
    /// All of an image of `len` bytes, as high as it may lie: at a multiple of `page`, a power of two, from `first` on, with its
    /// end at `limit` or before. `None` if there is no room.
    pub(crate) fn below(limit: u64, len: u64, first: u64, page: u64) -> Option<Self> {
        let start = limit.checked_sub(len)? & !page.checked_sub(1)?;
        (start >= first).then_some(Self { file_offset: 0, file_len: len, guest_addr: start, mem_len: len })
    }

    pub(crate) fn contains(&self, addr: u64) -> bool {
        addr.checked_sub(self.guest_addr).is_some_and(|at| at < self.mem_len)
    }

    /// The first address after it; parsing has checked that it does not wrap.
    pub(crate) fn end(&self) -> u64 {
        self.guest_addr.saturating_add(self.mem_len)
    }
}

/// How the bytes of images got into guest memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Loaded {
    /// Bytes that the guest sees in the page cache, until their page is written.
    pub mapped: u64,
    /// Bytes that were written to guest memory. Where an image was unpacked first, pages of zeros are not.
    pub copied: u64,
}

impl AddAssign for Loaded {
    fn add_assign(&mut self, other: Self) {
        self.mapped += other.mapped;
        self.copied += other.copied;
    }
}

/// Puts what the image holds of `segments` into guest memory, which reads as zero before.
pub(crate) fn load(source: &ImageSource, segments: &[LoadSegment], mem: &GuestMmap) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    let mut copies = segments.to_vec();
    if let ImageSource::Mapped(file) = source {
        // Of segments that overlap, the last one wins. A list that is worked off in order says that by itself.
        if !overlap(segments) {
            copies.clear();
            let (mut pieces, page) = (Vec::new(), host_page_size() as u64);
            for segment in segments {
                pieces.extend(split(segment, segments, (file, page), &mut copies)?);
            }
            map_file(mem, file, &pieces).map_err(io::Error::other)?;
            loaded.mapped = pieces.iter().map(|piece| piece.len).sum();
        }
    }
    for copy in copies.iter().filter(|copy| copy.file_len != 0) {
        let addr = GuestAddress(copy.guest_addr);
        loaded.copied += source.copy_to_guest(copy.file_offset, copy.file_len, mem, addr)?;
    }
    Ok(loaded)
}

/// What of a segment can be mapped, by pages of so many bytes. Adds what cannot to `copies`: all of it where its place in a page of the file is
/// not that in a page of the guest, else what does not fill its page.
fn split(
    segment: &LoadSegment,
    all: &[LoadSegment],
    (file, page): (&File, u64),
    copies: &mut Vec<LoadSegment>,
) -> io::Result<Option<FilePiece>> {
    let part = |from: u64, to: u64| LoadSegment {
        file_offset: segment.file_offset + from,
        guest_addr: segment.guest_addr + from,
        file_len: to - from,
        mem_len: to - from,
    };
    let len = segment.file_len;
    let head = segment.guest_addr.wrapping_neg() % page;
    if !(segment.file_offset ^ segment.guest_addr).is_multiple_of(page) || head >= len {
        copies.push(part(0, len));
        return Ok(None);
    }
    let tail = (len - head) % page;
    let end = if tail == 0 || has_last_page(segment, all, (file, page))? { len } else { len - tail };
    copies.extend([part(0, head), part(end, len)]);
    let body = part(head, end);
    let piece =
        FilePiece { addr: GuestAddress(body.guest_addr), offset: body.file_offset, len: body.file_len };
    Ok((piece.len != 0).then_some(piece))
}

/// Returns true if the page with the last byte of a segment may be a page of the file: no other segment has a part of
/// it, and the rest of it is zero in the file, too.
fn has_last_page(segment: &LoadSegment, all: &[LoadSegment], (file, page): (&File, u64)) -> io::Result<bool> {
    let end = segment.guest_addr + segment.file_len;
    let first = end - end % page;
    let next = first.saturating_add(page);
    let mut others = all.iter().filter(|other| *other != segment && other.mem_len != 0);
    if others.any(|other| other.guest_addr < next && other.end() > first) {
        return Ok(false);
    }
    let mut rest = vec![0; (page - end % page) as usize];
    let mut rest = rest.as_mut_slice();
    let mut at = segment.file_offset + segment.file_len;
    while !rest.is_empty() {
        match file.read_at(rest, at)? {
            // After the end of the file, a mapping has zeros.
            0 => break,
            read => {
                let (read, after) = rest.split_at_mut(read.min(rest.len()));
                if read.iter().any(|&byte| byte != 0) {
                    return Ok(false);
                }
                at += read.len() as u64;
                rest = after;
            }
        }
    }
    Ok(true)
}

fn overlap(segments: &[LoadSegment]) -> bool {
    let mut sorted: Vec<_> = segments.iter().filter(|segment| segment.mem_len != 0).collect();
    sorted.sort_unstable_by_key(|segment| segment.guest_addr);
    sorted.iter().zip(sorted.iter().skip(1)).any(|(low, high)| low.end() > high.guest_addr)
}

#[cfg(test)]
mod tests;
