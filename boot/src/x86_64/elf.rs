//! ELF `vmlinux` images: what is loaded where, and where execution starts.
//!
//! System V gABI chapters 4 and 5; the PVH note is `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's `elfnote.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::error::KernelError;
use crate::image::ImageSource;
use crate::load::LoadSegment;

pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_64: u8 = 2;
const DATA_LITTLE: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NOTE_OWNER_XEN: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Far more than any kernel has (Linux: 5), and small enough that a lie costs nothing.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// Linux's notes are about 100 to 500 bytes.
const MAX_NOTES: u64 = 64 << 10;

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident_rest: [u8; 10],
    kind: U16,
    machine: U16,
    version: U32,
    entry: U64,
    phoff: U64,
    shoff: U64,
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    sections: [u8; 6],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramHeader {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

/// A parsed and validated ELF image.
#[derive(Debug)]
pub(crate) struct Elf {
    pub segments: Vec<LoadSegment>,
    /// The ELF header's entry point: Linux's `startup_64`.
    pub entry: u64,
    /// The PVH note's entry point.
    pub pvh_entry: Option<u32>,
}

impl Elf {
    /// Parses an image of `len` bytes whose first bytes are `head`.
    pub fn parse(source: &ImageSource, len: u64, head: &[u8]) -> Result<Self, KernelError> {
        let header = header(head, len)?;
        let mut segments = Vec::new();
        let mut pvh_entry = None;
        for ph in program_headers(source, len, head, header)? {
            match ph.kind.get() {
                PT_LOAD if ph.memsz.get() != 0 => segments.push(segment(&ph, len)?),
                PT_NOTE if pvh_entry.is_none() => pvh_entry = pvh_note(source, len, &ph)?,
                _ => (),
            }
        }
        if segments.is_empty() {
            return Err(KernelError::InvalidElf { field: "number of loadable segments", value: 0 });
        }
        Ok(Self { segments, entry: header.entry.get(), pvh_entry })
    }

    /// Returns true if `addr` lies in memory that the image fills.
    pub fn contains(&self, addr: u64) -> bool {
        self.segments.iter().any(|segment| segment.contains(addr))
    }
}

fn header(head: &[u8], len: u64) -> Result<&FileHeader, KernelError> {
    let (header, _) = FileHeader::ref_from_prefix(head).map_err(|_| KernelError::Truncated {
        what: "the ELF header",
        needs: size_of::<FileHeader>() as u64,
        has: len,
    })?;
    if header.data != DATA_LITTLE {
        return Err(KernelError::WrongArchitecture { found: "a big-endian architecture" });
    }
    if header.machine != MACHINE_X86_64 {
        return Err(KernelError::WrongArchitecture { found: machine_name(header.machine.get()) });
    }
    let invalid = |field, value: u16| Err(KernelError::InvalidElf { field, value: value.into() });
    if header.class != CLASS_64 {
        return invalid("class", header.class.into());
    }
    if header.kind != TYPE_EXECUTABLE && header.kind != TYPE_SHARED {
        return invalid("type", header.kind.get());
    }
    if usize::from(header.phentsize.get()) != size_of::<ProgramHeader>() {
        return invalid("program header size", header.phentsize.get());
    }
    if header.phnum > MAX_PROGRAM_HEADERS {
        return invalid("number of program headers", header.phnum.get());
    }
    Ok(header)
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
        3 => "32-bit x86",
        21 => "64-bit PowerPC",
        22 => "s390",
        40 => "32-bit Arm",
        183 => "AArch64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "an architecture other than x86_64",
    }
}

fn program_headers(
    source: &ImageSource,
    len: u64,
    head: &[u8],
    header: &FileHeader,
) -> Result<Vec<ProgramHeader>, KernelError> {
    let offset = header.phoff.get();
    let size = u64::from(header.phnum.get()) * size_of::<ProgramHeader>() as u64;
    within("the program headers", offset, size, len)?;
    // Usually they follow the file header and are there already.
    let mut buffer = Vec::new();
    let table = match part(head, offset, size) {
        Some(table) => table,
        None => {
            buffer.resize(size as usize, 0);
            source.read_exact_at(offset, &mut buffer).map_err(|source| KernelError::Read { source })?;
            &buffer
        }
    };
    Ok(table
        .chunks_exact(size_of::<ProgramHeader>())
        .filter_map(|entry| ProgramHeader::read_from_bytes(entry).ok())
        .collect())
}

fn part(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(offset).ok()?..)?.get(..usize::try_from(len).ok()?)
}

/// Refuses a range of the file that does not lie within its `has` bytes.
fn within(what: &'static str, offset: u64, len: u64, has: u64) -> Result<(), KernelError> {
    let needs = offset.saturating_add(len);
    if needs <= has { Ok(()) } else { Err(KernelError::Truncated { what, needs, has }) }
}

fn segment(ph: &ProgramHeader, len: u64) -> Result<LoadSegment, KernelError> {
    let segment = LoadSegment {
        file_offset: ph.offset.get(),
        file_len: ph.filesz.get(),
        guest_addr: ph.paddr.get(),
        mem_len: ph.memsz.get(),
    };
    within("a segment", segment.file_offset, segment.file_len, len)?;
    if segment.file_len > segment.mem_len {
        return Err(KernelError::InvalidElf { field: "segment's size in the file", value: segment.file_len });
    }
    if segment.guest_addr.checked_add(segment.mem_len).is_none() {
        return Err(KernelError::InvalidElf { field: "segment's size in memory", value: segment.mem_len });
    }
    Ok(segment)
}

/// The PVH entry point, if this segment of notes has one.
fn pvh_note(source: &ImageSource, len: u64, ph: &ProgramHeader) -> Result<Option<u32>, KernelError> {
    let (offset, size) = (ph.offset.get(), ph.filesz.get());
    within("the notes", offset, size, len)?;
    if size > MAX_NOTES {
        return Err(KernelError::InvalidElf { field: "size of the notes", value: size });
    }
    let mut notes = vec![0; size as usize];
    source.read_exact_at(offset, &mut notes).map_err(|source| KernelError::Read { source })?;
    // Names and descriptors are padded to 4 bytes, except where the segment says 8.
    let align = if ph.align == 8 { 8 } else { 4 };
    find_pvh_note(&notes, align)
}

fn find_pvh_note(notes: &[u8], align: usize) -> Result<Option<u32>, KernelError> {
    let mut rest = notes;
    while let Ok((header, after)) = <[U32; 3]>::ref_from_prefix(rest) {
        let [name_len, desc_len, kind] = header.map(U32::get);
        let desc_start = size_of_val(header) + (name_len as usize).min(notes.len());
        let desc_start = desc_start.next_multiple_of(align);
        let Some(name) = after.get(..name_len as usize) else { break };
        let desc = rest.get(desc_start..).and_then(|rest| rest.get(..desc_len as usize));
        if kind == NOTE_PHYS32_ENTRY && name == NOTE_OWNER_XEN {
            return match desc {
                Some(&[a, b, c, d] | &[a, b, c, d, 0, 0, 0, 0]) => Ok(Some(u32::from_le_bytes([a, b, c, d]))),
                _ => Err(KernelError::InvalidPvhNote { size: desc_len }),
            };
        }
        let next = desc_start.saturating_add(desc_len as usize).checked_next_multiple_of(align);
        rest = next.and_then(|next| rest.get(next..)).unwrap_or_default();
    }
    Ok(None)
}

#[cfg(test)]
mod tests;
