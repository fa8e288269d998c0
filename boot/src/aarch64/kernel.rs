//! Kernel images: the arm64 Image, as it is, packed as a file, or packed in an EFI image that unpacks itself (zboot).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, KnownLayout};

use super::error::KernelError;
use super::layout;
use crate::image::ImageSource;
use crate::load::LoadSegment;
use crate::unpack;

/// The header of an Image (`Documentation/arch/arm64/booting.rst`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ImageHeader {
    code: [U32; 2],
    text_offset: U64,
    image_size: U64,
    flags: U64,
    reserved: [U64; 3],
    magic: [u8; 4],
    pe: U32,
}

const IMAGE_MAGIC: [u8; 4] = *b"ARM\x64";
const BIG_ENDIAN: u64 = 1;
/// Where kernels lie that do not say how long they are: those before Linux 3.17, which do not say where, either.
const OLD_TEXT_OFFSET: u64 = 0x8_0000;

/// The header of a PE file with its signature (PE Format, Microsoft): `optional_len` bytes behind it there are
/// `section_count` of [`PeSection`].
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PeHeader {
    magic: [u8; 4],
    machine: U16,
    section_count: U16,
    others: [U32; 3],
    optional_len: U16,
    flags: U16,
}

const PE_MAGIC: [u8; 4] = *b"PE\0\0";
const PE_HEADER: u64 = size_of::<PeHeader>() as u64;
/// More sections than Windows loads. Linux has two or three.
const MAX_SECTIONS: usize = 96;

/// A section of a PE file.
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct PeSection {
    name: [u8; 8],
    memory: [U32; 2],
    file_len: U32,
    file_offset: U32,
    others: [U32; 4],
}

/// The header of an EFI image whose payload is a packed kernel (`drivers/firmware/efi/libstub/zboot-header.S`).
#[derive(Clone, Copy, Debug, FromBytes, Immutable, KnownLayout)]
#[repr(C)]
struct ZbootHeader {
    magic: [u8; 8],
    payload_offset: U32,
    payload_size: U32,
    reserved: [U32; 2],
    compression: [u8; 6],
}

const ZBOOT_MAGIC: [u8; 8] = *b"MZ\0\0zimg";

/// How much of an image says what it is.
const HEAD: usize = 4096;

/// A kernel image, validated and ready to be loaded.
#[derive(Debug)]
pub struct Kernel<'a> {
    image: Image<'a>,
    len: u64,
    text_offset: u64,
    /// Bytes that it needs from its start on until it manages memory itself.
    size: u64,
}

#[derive(Debug)]
enum Image<'a> {
    Given(ImageSource<'a>),
    Unpacked(Vec<u8>),
}

impl<'a> Kernel<'a> {
    /// Recognises and validates an image, and unpacks it if it is packed.
    pub fn open(source: ImageSource<'a>) -> Result<Self, KernelError> {
        let mut buffer = [0; HEAD];
        let (len, head) = read_head(&source, &mut buffer)?;
        let unpacked = if unpack::is_packed(head) { Some(unpack::file(&source, len, head)?) } else { None };
        let image = match unpacked {
            None => Image::Given(source),
            Some(bytes) => Image::Unpacked(bytes),
        };
        let (len, head) = read_head(&image.source(), &mut buffer)?;
        let image = match unpack_zboot(&image.source(), len, head)? {
            None => image,
            Some(bytes) => Image::Unpacked(bytes),
        };
        let (len, head) = read_head(&image.source(), &mut buffer)?;
        let (text_offset, size) = parse(&image.source(), len, head)?;
        Ok(Self { image, len, text_offset, size })
    }

    /// The image that is loaded.
    pub(super) fn source(&self) -> ImageSource<'_> {
        self.image.source()
    }

    /// Where the kernel goes if memory from `start` on is its own: as far down as it may lie. Its entry point is its
    /// first byte. `None` if it would end beyond all addresses.
    pub(super) fn place(&self, start: u64) -> Option<LoadSegment> {
        let base = start.checked_next_multiple_of(layout::KERNEL_ALIGN)?;
        let guest_addr = base.checked_add(self.text_offset)?;
        guest_addr.checked_add(self.size)?;
        Some(LoadSegment { file_offset: 0, file_len: self.len, guest_addr, mem_len: self.size })
    }
}

impl Image<'_> {
    fn source(&self) -> ImageSource<'_> {
        match self {
            Self::Given(source) => *source,
            Self::Unpacked(bytes) => ImageSource::Bytes(bytes),
        }
    }
}

/// The text offset of an Image of `len` bytes that begins with `head`, and the size of the memory that it needs.
fn parse(source: &ImageSource, len: u64, head: &[u8]) -> Result<(u64, u64), KernelError> {
    let header = match ImageHeader::read_from_prefix(head) {
        Ok((header, _)) if header.magic == IMAGE_MAGIC => header,
        _ => return Err(foreign(head)),
    };
    if header.flags.get() & BIG_ENDIAN != 0 {
        return Err(KernelError::BigEndian);
    }
    check_sections(source, len, header.pe.get().into())?;
    match (header.text_offset.get(), header.image_size.get()) {
        (_, 0) => Ok((OLD_TEXT_OFFSET, len)),
        // Where its first instruction would be.
        (value, _) if !value.is_multiple_of(4) => Err(KernelError::Invalid { field: "text_offset", value }),
        // What follows the image, such as a signature, is loaded with it.
        (text_offset, size) => Ok((text_offset, size.max(len))),
    }
}

/// Fails if sections lie behind the end of an image of `len` bytes, which an Image that EFI can start has a list of: where there is
/// a PE header `at` this offset.
fn check_sections(source: &ImageSource, len: u64, at: u64) -> Result<(), KernelError> {
    let mut header = [0; size_of::<PeHeader>()];
    let there = header.get_mut(..len.saturating_sub(at).min(PE_HEADER) as usize).unwrap_or_default();
    let read =
        |at, buf: &mut [u8]| source.read_exact_at(at, buf).map_err(|source| KernelError::Read { source });
    read(at, there)?;
    if !there.iter().zip(PE_MAGIC).all(|(found, byte)| *found == byte) {
        return Ok(());
    }
    let has_all = |what, needs| {
        if needs > len { Err(KernelError::Truncated { what, needs, has: len }) } else { Ok(()) }
    };
    has_all("the PE header", at + PE_HEADER)?;
    let Ok(header) = PeHeader::read_from_bytes(&header) else { return Ok(()) };
    let count = usize::from(header.section_count.get());
    let mut sections = [[0; size_of::<PeSection>()]; MAX_SECTIONS];
    let Some(sections) = sections.get_mut(..count) else {
        return Err(KernelError::Invalid { field: "the number of sections", value: count as u64 });
    };
    let sections = sections.as_flattened_mut();
    let table = at + PE_HEADER + u64::from(header.optional_len.get());
    has_all("the table of sections", table + sections.len() as u64)?;
    read(table, sections)?;
    let ends = sections.chunks_exact(size_of::<PeSection>()).filter_map(|bytes| {
        let section = PeSection::read_from_bytes(bytes).ok()?;
        let len = section.file_len.get();
        (len > 0).then_some(u64::from(section.file_offset.get()) + u64::from(len))
    });
    has_all("a section", ends.max().unwrap_or(0))
}

/// What an image is that is no Image.
fn foreign(head: &[u8]) -> KernelError {
    let at = |offset: usize, len: usize| head.get(offset..offset + len).unwrap_or_default();
    match () {
        () if at(0x202, 4) == b"HdrS" => KernelError::WrongArchitecture { found: "x86" },
        () if at(0x38, 4) == b"RSC\x05" => KernelError::WrongArchitecture { found: "RISC-V" },
        () if at(0, 4) == b"\x7fELF" => match at(18, 2) {
            [183, 0] => KernelError::Elf,
            [62 | 3, 0] => KernelError::WrongArchitecture { found: "x86" },
            _ => KernelError::NotAKernel,
        },
        () => KernelError::NotAKernel,
    }
}

/// What an EFI image of `len` bytes holds, if `head` says that it is one with a packed kernel.
fn unpack_zboot(source: &ImageSource, len: u64, head: &[u8]) -> Result<Option<Vec<u8>>, KernelError> {
    let header = match ZbootHeader::read_from_prefix(head) {
        Ok((header, _)) if header.magic == ZBOOT_MAGIC => header,
        _ => return Ok(None),
    };
    let (start, size) = (u64::from(header.payload_offset.get()), u64::from(header.payload_size.get()));
    if (start as usize) < size_of::<ZbootHeader>() {
        return Err(KernelError::Invalid { field: "the payload offset", value: start });
    }
    // The size that the kernel's build appends to all but gzip, which has its own, is not counted.
    let trailer = if header.compression.starts_with(b"gzip\0") { 0 } else { unpack::TRAILER };
    let end = start + size + trailer;
    if end > len {
        return Err(KernelError::Truncated { what: "the payload", needs: end, has: len });
    }
    Ok(Some(unpack::payload(source, start..end)?))
}

/// The length of an image, and its first bytes in `buffer`.
fn read_head<'b>(source: &ImageSource, buffer: &'b mut [u8; HEAD]) -> Result<(u64, &'b [u8]), KernelError> {
    let len = source.size().map_err(|source| KernelError::Read { source })?;
    let head = buffer.get_mut(..len.min(HEAD as u64) as usize).unwrap_or_default();
    source.read_exact_at(0, head).map_err(|source| KernelError::Read { source })?;
    Ok((len, head))
}

#[cfg(test)]
mod tests;
