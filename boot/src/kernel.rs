//! Kernel images: recognised, validated, unpacked where that is faster, and put into guest memory.

use std::io;
use std::str::FromStr;

use ossature_memory::GuestMmap;

use crate::bzimage::{self, BzImage};
use crate::elf::{self, Elf, Segment};
use crate::load::{self, Loaded};
use crate::source::Source;
use crate::unpack::{self, UnpackError};
use crate::x86_64::layout;

/// How the guest is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BootProtocol {
    /// Whatever gets to the kernel fastest: a bzImage is unpacked in the VMM if its compression is known
    /// (else the guest unpacks it), and the kernel is entered by PVH if it has such an entry point, else by
    /// the 64-bit Linux protocol.
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

/// Why a kernel image cannot be booted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KernelError {
    /// The file cannot be read.
    #[error("the kernel image cannot be read")]
    Read {
        /// The failure.
        source: io::Error,
    },
    /// Neither ELF nor bzImage.
    #[error("not a kernel: neither an ELF file nor a bzImage")]
    NotAKernel,
    /// A kernel, but not one for this machine.
    #[error("the kernel is for {found}; this machine is x86_64")]
    WrongArchitecture {
        /// What it is for.
        found: &'static str,
    },
    /// The file ends before something that it says it contains.
    #[error("the kernel image is truncated: {what} would end at byte {needs}, the file has {has}")]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Bytes that the file would have to have.
        needs: u64,
        /// Bytes that it has.
        has: u64,
    },
    /// An ELF header contradicts the format or itself.
    #[error("invalid ELF kernel: the {field} is {value:#x}")]
    InvalidElf {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// The PVH note does not hold an address.
    #[error("invalid ELF kernel: the PVH note's {size} bytes are not a 32-bit address")]
    InvalidPvhNote {
        /// Size of the note's descriptor in bytes.
        size: u32,
    },
    /// The PVH protocol was asked for.
    #[error("the kernel has no PVH entry point (built without CONFIG_PVH)")]
    NoPvhEntry,
    /// The entry point is not in the kernel.
    #[error("the kernel's entry point {entry:#x} lies outside of its segments")]
    EntryOutsideKernel {
        /// Guest-physical address.
        entry: u64,
    },
    /// The setup header of a bzImage contradicts the protocol or itself.
    #[error("invalid bzImage: {field} is {value:#x}")]
    InvalidBzImage {
        /// Which field, as `Documentation/arch/x86/boot.rst` spells it.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A bzImage that cannot be entered in 64-bit mode.
    #[error("the bzImage has no 64-bit entry point (boot protocol {}.{:02}, 2.12 and a 64-bit kernel are needed)",
        version >> 8, version & 0xff)]
    NoLinux64Entry {
        /// Its boot protocol version, as the header encodes it.
        version: u16,
    },
    /// The payload of a bzImage cannot be unpacked.
    #[error("the bzImage cannot be unpacked")]
    Unpack(#[from] UnpackError),
    /// The kernel wants memory that the machine does not have.
    #[error("the kernel needs memory from {start:#x} to {end:#x}; RAM there ends at {ram_end:#x}")]
    OutsideRam {
        /// First byte.
        start: u64,
        /// First byte behind.
        end: u64,
        /// Where the RAM that holds `start`, or else the RAM below it, ends.
        ram_end: u64,
    },
    /// The kernel would overwrite the boot tables.
    #[error(
        "the kernel loads at {start:#x}, but the first {:#x} bytes belong to the boot tables",
        layout::HIGH_RAM
    )]
    OverlapsBootTables {
        /// First byte.
        start: u64,
    },
}

/// A kernel image, validated and ready to be loaded.
#[derive(Debug)]
pub struct Kernel<'a> {
    image: Image<'a>,
    segments: Vec<Segment>,
    entry: Entry,
    pub(crate) bzimage: Option<BzImage>,
    /// End of the memory that the kernel needs until it manages memory itself.
    pub(crate) end: u64,
}

#[derive(Debug)]
enum Image<'a> {
    Given(Source<'a>),
    Unpacked(Vec<u8>),
}

impl Image<'_> {
    fn source(&self) -> Source<'_> {
        match self {
            Self::Given(source) => *source,
            Self::Unpacked(bytes) => Source::Bytes(bytes),
        }
    }
}

impl<'a> Kernel<'a> {
    /// Recognises and validates an image, and unpacks it if `protocol` asks for that.
    pub fn open(source: Source<'a>, protocol: BootProtocol) -> Result<Self, KernelError> {
        let len = source.size().map_err(|source| KernelError::Read { source })?;
        let mut head = [0; 4096];
        let head = head.get_mut(..len.min(4096) as usize).unwrap_or_default();
        source.read_exact_at(0, head).map_err(|source| KernelError::Read { source })?;
        if head.starts_with(&elf::MAGIC) {
            let elf = Elf::parse(&source, len, head)?;
            return Self::from_elf(elf, Image::Given(source), protocol, None);
        }
        if !bzimage::has_magic(head) {
            return Err(foreign_image(head));
        }
        let bzimage = BzImage::parse(len, head)?;
        match protocol {
            BootProtocol::Linux64 => Self::from_bzimage(source, bzimage),
            BootProtocol::Pvh => Self::from_payload(source, bzimage, protocol),
            BootProtocol::Auto => match Self::from_payload(source, bzimage.clone(), protocol) {
                Err(KernelError::Unpack(UnpackError::UnknownFormat { .. })) => {
                    Self::from_bzimage(source, bzimage)
                }
                other => other,
            },
        }
    }

    /// What has to be where in guest memory before the kernel starts.
    pub fn segments(&self) -> &[Segment] {
        &self.segments
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
    /// image is a [`Source::Mapped`] and was not unpacked, else copied.
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
            (BootProtocol::Pvh, None) => return Err(KernelError::NoPvhEntry),
            (BootProtocol::Auto | BootProtocol::Pvh, Some(entry)) => Entry::Pvh(entry),
            _ => Entry::Linux64(elf.entry),
        };
        let address = match entry {
            Entry::Pvh(entry) => entry.into(),
            Entry::Linux64(entry) => entry,
        };
        if !elf.contains(address) {
            return Err(KernelError::EntryOutsideKernel { entry: address });
        }
        Self::placed(image, elf.segments, entry, bzimage)
    }

    fn from_payload(
        source: Source<'a>,
        bzimage: BzImage,
        protocol: BootProtocol,
    ) -> Result<Self, KernelError> {
        let vmlinux = unpack::payload(&source, bzimage.payload()?)?;
        let source = Source::Bytes(&vmlinux);
        if !vmlinux.starts_with(&elf::MAGIC) {
            return Err(KernelError::NotAKernel);
        }
        let elf = Elf::parse(&source, vmlinux.len() as u64, &vmlinux)?;
        Self::from_elf(elf, Image::Unpacked(vmlinux), protocol, Some(bzimage))
    }

    fn from_bzimage(source: Source<'a>, bzimage: BzImage) -> Result<Self, KernelError> {
        let (segment, entry) = bzimage.segment()?;
        Self::placed(Image::Given(source), vec![segment], Entry::Linux64(entry), Some(bzimage))
    }

    fn placed(
        image: Image<'a>,
        segments: Vec<Segment>,
        entry: Entry,
        bzimage: Option<BzImage>,
    ) -> Result<Self, KernelError> {
        if let Some(low) = segments.iter().find(|segment| segment.guest_addr < layout::HIGH_RAM) {
            return Err(KernelError::OverlapsBootTables { start: low.guest_addr });
        }
        let end = segments.iter().map(Segment::end).max().unwrap_or_default();
        Ok(Self { image, segments, entry, bzimage, end })
    }
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
