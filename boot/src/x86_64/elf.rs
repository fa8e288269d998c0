//! ELF images, of 64 and of 32 bits: what is loaded where, and where execution starts.
//!
//! System V gABI chapters 4 and 5; the PVH note is `XEN_ELFNOTE_PHYS32_ENTRY` of Xen's `elfnote.h`.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::error::KernelError;
use crate::image::ImageSource;
use crate::load::LoadSegment;

pub(crate) const MAGIC: [u8; 4] = *b"\x7fELF";

const CLASS_32: u8 = 1;
const CLASS_64: u8 = 2;
const DATA_LITTLE: u8 = 1;
const TYPE_EXECUTABLE: u16 = 2;
const TYPE_SHARED: u16 = 3;
const MACHINE_386: u16 = 3;
const MACHINE_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_NOTE: u32 = 4;
const NOTE_OWNER_XEN: &[u8] = b"Xen\0";
const NOTE_PHYS32_ENTRY: u32 = 18;

/// Far more than any kernel has (Linux: 5), and small enough that a lie costs nothing.
const MAX_PROGRAM_HEADERS: u16 = 256;
/// Linux's notes are about 100 to 500 bytes.
const MAX_NOTES: u64 = 64 << 10;

/// The start of every file header, before the classes differ.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Identity {
    magic: [u8; 4],
    class: u8,
    data: u8,
    ident_rest: [u8; 10],
    kind: U16,
    machine: U16,
    version: U32,
}

/// What follows in ELF64.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader64 {
    entry: U64,
    phoff: U64,
    shoff: U64,
    tail: FileHeaderTail,
}

/// What follows in ELF32.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeader32 {
    entry: U32,
    phoff: U32,
    shoff: U32,
    tail: FileHeaderTail,
}

/// The end of every file header.
#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct FileHeaderTail {
    flags: U32,
    ehsize: U16,
    phentsize: U16,
    phnum: U16,
    sections: [u8; 6],
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramHeader64 {
    kind: U32,
    flags: U32,
    offset: U64,
    vaddr: U64,
    paddr: U64,
    filesz: U64,
    memsz: U64,
    align: U64,
}

#[derive(FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ProgramHeader32 {
    kind: U32,
    offset: U32,
    vaddr: U32,
    paddr: U32,
    filesz: U32,
    memsz: U32,
    flags: U32,
    align: U32,
}

/// What is used of a file header of either class.
struct FileHeader {
    is_64: bool,
    entry: u64,
    phoff: u64,
    phnum: u16,
}

/// What is used of a program header of either class.
struct ProgramHeader {
    kind: u32,
    offset: u64,
    paddr: u64,
    filesz: u64,
    memsz: u64,
    align: u64,
}

impl From<&ProgramHeader64> for ProgramHeader {
    fn from(ph: &ProgramHeader64) -> Self {
        Self {
            kind: ph.kind.get(),
            offset: ph.offset.get(),
            paddr: ph.paddr.get(),
            filesz: ph.filesz.get(),
            memsz: ph.memsz.get(),
            align: ph.align.get(),
        }
    }
}

impl From<&ProgramHeader32> for ProgramHeader {
    fn from(ph: &ProgramHeader32) -> Self {
        Self {
            kind: ph.kind.get(),
            offset: ph.offset.get().into(),
            paddr: ph.paddr.get().into(),
            filesz: ph.filesz.get().into(),
            memsz: ph.memsz.get().into(),
            align: ph.align.get().into(),
        }
    }
}

/// A parsed and validated ELF image.
#[derive(Debug)]
pub(crate) struct Elf {
    pub segments: Vec<LoadSegment>,
    /// ELF64, whose entry point is one in 64-bit mode.
    pub is_64: bool,
    /// The ELF header's entry point: of a 64-bit Linux, `startup_64`.
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
        for ph in program_headers(source, len, head, &header)? {
            match ph.kind {
                PT_LOAD if ph.memsz != 0 => segments.push(segment(&ph, len)?),
                PT_NOTE if pvh_entry.is_none() => pvh_entry = pvh_note(source, len, &ph)?,
                _ => (),
            }
        }
        if segments.is_empty() {
            return Err(KernelError::InvalidElf { field: "number of loadable segments", value: 0 });
        }
        Ok(Self { segments, is_64: header.is_64, entry: header.entry, pvh_entry })
    }

    /// Returns true if `addr` lies in memory that the image fills.
    pub fn contains(&self, addr: u64) -> bool {
        self.segments.iter().any(|segment| segment.contains(addr))
    }
}

fn header(head: &[u8], len: u64) -> Result<FileHeader, KernelError> {
    let truncated =
        |size: usize| KernelError::Truncated { what: "the ELF header", needs: size as u64, has: len };
    let (identity, rest) = Identity::ref_from_prefix(head).map_err(|_| truncated(size_of::<Identity>()))?;
    if identity.data != DATA_LITTLE {
        return Err(KernelError::WrongArchitecture { found: "a big-endian architecture" });
    }
    let machine = identity.machine.get();
    if machine != MACHINE_X86_64 && machine != MACHINE_386 {
        return Err(KernelError::WrongArchitecture { found: machine_name(machine) });
    }
    let invalid = |field, value: u16| Err(KernelError::InvalidElf { field, value: value.into() });
    let (entry, phoff, tail, program_header) = match identity.class {
        CLASS_64 if machine == MACHINE_X86_64 => {
            let (header, _) = FileHeader64::ref_from_prefix(rest)
                .map_err(|_| truncated(size_of::<Identity>() + size_of::<FileHeader64>()))?;
            (header.entry.get(), header.phoff.get(), &header.tail, size_of::<ProgramHeader64>())
        }
        CLASS_32 => {
            let (header, _) = FileHeader32::ref_from_prefix(rest)
                .map_err(|_| truncated(size_of::<Identity>() + size_of::<FileHeader32>()))?;
            let (entry, phoff) = (header.entry.get().into(), header.phoff.get().into());
            (entry, phoff, &header.tail, size_of::<ProgramHeader32>())
        }
        class => return invalid("class", class.into()),
    };
    if identity.kind != TYPE_EXECUTABLE && identity.kind != TYPE_SHARED {
        return invalid("type", identity.kind.get());
    }
    if usize::from(tail.phentsize.get()) != program_header {
        return invalid("program header size", tail.phentsize.get());
    }
    if tail.phnum > MAX_PROGRAM_HEADERS {
        return invalid("number of program headers", tail.phnum.get());
    }
    Ok(FileHeader { is_64: identity.class == CLASS_64, entry, phoff, phnum: tail.phnum.get() })
}

fn machine_name(machine: u16) -> &'static str {
    match machine {
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
    let each = if header.is_64 { size_of::<ProgramHeader64>() } else { size_of::<ProgramHeader32>() };
    let (offset, size) = (header.phoff, u64::from(header.phnum) * each as u64);
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
    let parse = |entry| match header.is_64 {
        true => ProgramHeader64::ref_from_bytes(entry).ok().map(ProgramHeader::from),
        false => ProgramHeader32::ref_from_bytes(entry).ok().map(ProgramHeader::from),
    };
    Ok(table.chunks_exact(each).filter_map(parse).collect())
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
    let segment =
        LoadSegment { file_offset: ph.offset, file_len: ph.filesz, guest_addr: ph.paddr, mem_len: ph.memsz };
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
    let (offset, size) = (ph.offset, ph.filesz);
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
