//! Kernel images: recognised, validated, unpacked where that is faster, and put into guest memory.

use std::ops::Range;
use std::str::FromStr;

use ossature_memory::GuestMmap;

use super::bzimage::{self, BzImage};
use super::elf::{self, Elf};
use super::error::KernelError;
use super::layout;
use crate::image::ImageSource;
use crate::load::{self, LoadSegment, Loaded};
use crate::unpack;

/// How the guest is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BootProtocol {
    /// Whatever gets to the kernel fastest: a bzImage is unpacked in the VMM if that is possible (else it is handed
    /// over as it is, if it has a 64-bit entry point), and the kernel is entered by PVH if it has such an entry point,
    /// else by the 64-bit Linux protocol.
    #[default]
    Auto,
    /// The kernel's PVH entry point; a bzImage is unpacked in the VMM.
    Pvh,
    /// The 64-bit Linux protocol; a bzImage is handed over as it is and unpacks itself (and may then choose
    /// its address at random, which an unpacked one cannot).
    Linux64,
}

/// `auto`, `pvh` or `linux`, as a command line says it.
impl FromStr for BootProtocol {
    type Err = UnknownProtocol;

    fn from_str(name: &str) -> Result<Self, UnknownProtocol> {
        match name {
            "auto" => Ok(Self::Auto),
            "pvh" => Ok(Self::Pvh),
            "linux" => Ok(Self::Linux64),
            _ => Err(UnknownProtocol),
        }
    }
}

/// A name that is no [`BootProtocol`]'s.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give auto, pvh or linux")]
pub struct UnknownProtocol;

/// The entry point of a [`Kernel`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Entry {
    /// 32-bit protected mode without paging, at this address, with a PVH `start_info`.
    Pvh(u32),
    /// 64-bit mode, at this address, with a zero page.
    Linux64(u64),
}

impl Entry {
    /// Guest-physical.
    fn address(self) -> u64 {
        match self {
            Self::Pvh(address) => address.into(),
            Self::Linux64(address) => address,
        }
    }
}

/// A kernel image, validated and ready to be loaded.
#[derive(Debug)]
pub struct Kernel<'a> {
    image: Image<'a>,
    segments: Vec<LoadSegment>,
    entry: Entry,
    /// The setup header of the bzImage that the kernel is, or was unpacked from.
    pub(crate) bzimage: Option<BzImage>,
    /// A bzImage that is loaded as it is, and finds its setup header in the zero page.
    pub(crate) is_bzimage: bool,
    /// End of the memory that the kernel needs until it manages memory itself.
    pub(crate) end: u64,
}

#[derive(Debug)]
enum Image<'a> {
    Given(ImageSource<'a>),
    Unpacked(Vec<u8>),
}

impl Image<'_> {
    fn source(&self) -> ImageSource<'_> {
        match self {
            Self::Given(source) => *source,
            Self::Unpacked(bytes) => ImageSource::Bytes(bytes),
        }
    }
}

impl<'a> Kernel<'a> {
    /// Recognises and validates an image, and unpacks it if it is packed as a whole (gzip, LZ4, XZ, zstd), or if it is a
    /// bzImage and `protocol` asks for that.
    pub fn open(source: ImageSource<'a>, protocol: BootProtocol) -> Result<Self, KernelError> {
        let mut buffer = [0; HEAD];
        let (len, head) = read_head(&source, &mut buffer)?;
        if !unpack::is_packed(head) {
            return Self::recognise(Image::Given(source), len, head, protocol);
        }
        let image = Image::Unpacked(unpack::file(&source, len, head)?);
        let (len, head) = read_head(&image.source(), &mut buffer)?;
        Self::recognise(image, len, head, protocol)
    }

    /// What an image of `len` bytes is that is not packed and begins with `head`.
    fn recognise(
        image: Image<'a>,
        len: u64,
        head: &[u8],
        protocol: BootProtocol,
    ) -> Result<Self, KernelError> {
        let source = image.source();
        if head.starts_with(&elf::MAGIC) {
            let elf = Elf::parse(&source, len, head)?;
            return Self::from_elf(elf, image, protocol, None);
        }
        if !bzimage::has_magic(head) {
            return Err(foreign_image(head));
        }
        let bzimage = BzImage::parse(len, head)?;
        match protocol {
            BootProtocol::Linux64 => Self::from_bzimage(image, bzimage),
            BootProtocol::Pvh => Self::from_payload(&source, bzimage, protocol),
            BootProtocol::Auto => Self::from_payload(&source, bzimage.clone(), protocol).or_else(|error| {
                // It unpacks itself, or is no Linux at all and has nothing to unpack.
                Self::from_bzimage(image, bzimage).map_err(|other| match other {
                    KernelError::NoLinux64Entry { version } => {
                        KernelError::NoEntry { version, source: Box::new(error) }
                    }
                    _ => error,
                })
            }),
        }
    }

    /// A kernel that another loader has put into guest memory, for [`describe`](super::describe): the `memory` that it
    /// fills or needs, and how it is entered. Of a bzImage that unpacks itself, `setup_header` is the setup header, from
    /// byte 0x1f1 of the image on.
    ///
    /// ```
    /// use ossature_boot::x86_64::{Entry, Kernel};
    ///
    /// let kernel = Kernel::loaded(0x100_0000..0x200_0000, Entry::Linux64(0x100_0000), None)?;
    /// assert_eq!(kernel.segments()[0].mem_len, 0x100_0000);
    /// # Ok::<(), ossature_boot::x86_64::KernelError>(())
    /// ```
    pub fn loaded(
        memory: Range<u64>,
        entry: Entry,
        setup_header: Option<&[u8]>,
    ) -> Result<Self, KernelError> {
        let address = entry.address();
        if !memory.contains(&address) {
            return Err(KernelError::EntryOutsideKernel { entry: address });
        }
        let (guest_addr, mem_len) = (memory.start, memory.end - memory.start);
        let segment = LoadSegment { file_offset: 0, file_len: 0, guest_addr, mem_len };
        let bzimage = setup_header.map(BzImage::loaded);
        let unpacks_itself = bzimage.is_some();
        Self::placed(Image::Given(ImageSource::Bytes(&[])), vec![segment], entry, bzimage, unpacks_itself)
    }

    /// What has to be where in guest memory before the kernel starts.
    pub fn segments(&self) -> &[LoadSegment] {
        &self.segments
    }

    /// The first address that is its own.
    pub(super) fn start(&self) -> u64 {
        self.segments.iter().map(|segment| segment.guest_addr).min().unwrap_or_default()
    }

    /// Where and how the kernel is entered.
    pub fn entry(&self) -> Entry {
        self.entry
    }

    /// The unpacked image to which [`segments`](Self::segments) refers, or `None` if that is the image
    /// given to [`open`](Self::open).
    pub fn unpacked(&self) -> Option<&[u8]> {
        match &self.image {
            Image::Given(_) => None,
            Image::Unpacked(bytes) => Some(bytes),
        }
    }

    /// Puts the segments into guest memory, which must read as zero before: mapped as far as possible if the
    /// image is a [`ImageSource::Mapped`] and was not unpacked, else copied.
    pub fn load(&self, mem: &GuestMmap) -> Result<Loaded, KernelError> {
        load::load(&self.image.source(), &self.segments, mem).map_err(|source| KernelError::Read { source })
    }

    fn from_elf(
        elf: Elf,
        image: Image<'a>,
        protocol: BootProtocol,
        bzimage: Option<BzImage>,
    ) -> Result<Self, KernelError> {
        let entry = match (protocol, elf.pvh_entry) {
            (BootProtocol::Linux64, _) if !elf.is_64 => return Err(KernelError::Elf32),
            (_, None) if !elf.is_64 => return Err(KernelError::Elf32WithoutPvh),
            (BootProtocol::Pvh, None) => return Err(KernelError::NoPvhEntry),
            (BootProtocol::Auto | BootProtocol::Pvh, Some(entry)) => Entry::Pvh(entry),
            _ => Entry::Linux64(elf.entry),
        };
        let address = entry.address();
        if !elf.contains(address) {
            return Err(KernelError::EntryOutsideKernel { entry: address });
        }
        Self::placed(image, elf.segments, entry, bzimage, false)
    }

    fn from_payload(
        source: &ImageSource,
        bzimage: BzImage,
        protocol: BootProtocol,
    ) -> Result<Self, KernelError> {
        let vmlinux = unpack::payload(source, bzimage.payload()?)?;
        let source = ImageSource::Bytes(&vmlinux);
        if !vmlinux.starts_with(&elf::MAGIC) {
            return Err(KernelError::NotAKernel);
        }
        let elf = Elf::parse(&source, vmlinux.len() as u64, &vmlinux)?;
        Self::from_elf(elf, Image::Unpacked(vmlinux), protocol, Some(bzimage))
    }

    fn from_bzimage(image: Image<'a>, bzimage: BzImage) -> Result<Self, KernelError> {
        let (segment, entry) = bzimage.segment()?;
        Self::placed(image, vec![segment], Entry::Linux64(entry), Some(bzimage), true)
    }

    fn placed(
        image: Image<'a>,
        segments: Vec<LoadSegment>,
        entry: Entry,
        bzimage: Option<BzImage>,
        is_bzimage: bool,
    ) -> Result<Self, KernelError> {
        if let Some(low) = segments.iter().find(|segment| segment.guest_addr < layout::HIGH_RAM) {
            return Err(KernelError::OverlapsBootTables { start: low.guest_addr });
        }
        let end = segments.iter().map(LoadSegment::end).max().unwrap_or_default();
        Ok(Self { image, segments, entry, bzimage, is_bzimage, end })
    }
}

/// How much of an image says what it is.
const HEAD: usize = 4096;

/// The length of an image, and its first bytes in `buffer`.
fn read_head<'b>(source: &ImageSource, buffer: &'b mut [u8; HEAD]) -> Result<(u64, &'b [u8]), KernelError> {
    let len = source.size().map_err(|source| KernelError::Read { source })?;
    let head = buffer.get_mut(..len.min(HEAD as u64) as usize).unwrap_or_default();
    source.read_exact_at(0, head).map_err(|source| KernelError::Read { source })?;
    Ok((len, head))
}

/// What an image that is neither ELF nor bzImage is.
fn foreign_image(head: &[u8]) -> KernelError {
    // Both flat image formats have their magic at 0x38: Documentation/arch/{arm64/booting,riscv/boot-image-header}.rst
    match head.get(0x38..0x3c) {
        Some(b"ARM\x64") => KernelError::WrongArchitecture { found: "AArch64" },
        Some(b"RSC\x05") => KernelError::WrongArchitecture { found: "RISC-V" },
        _ => KernelError::NotAKernel,
    }
}

#[cfg(test)]
mod tests;
