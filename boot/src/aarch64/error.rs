//! Why a kernel is refused or a guest cannot be prepared.

use std::io;

use super::fdt::FdtError;
use crate::acpi::AcpiError;
use crate::cmdline::CmdlineError;
use crate::unpack::UnpackError;

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
    /// No image that is known.
    #[error(
        "not a kernel: neither an arm64 Image nor an EFI image with one in it, as it is or packed with gzip, LZ4, XZ or zstd"
    )]
    NotAKernel,
    /// A kernel, but not one for this machine.
    #[error("the kernel is for {found}; this machine is aarch64")]
    WrongArchitecture {
        /// What it is for.
        found: &'static str,
    },
    /// An uncompressed ELF file, which has no header of an Image.
    #[error("the kernel is an ELF file (vmlinux); this machine takes the Image made from it")]
    Elf,
    /// A kernel for the other byte order.
    #[error("the kernel is big-endian, this machine starts it little-endian")]
    BigEndian,
    /// A header contradicts the format or itself.
    #[error("invalid kernel: {field} is {value:#x}")]
    Invalid {
        /// Which field, as `Documentation/arch/arm64/booting.rst` spells it.
        field: &'static str,
        /// Its value.
        value: u64,
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
    /// The kernel is packed and cannot be unpacked.
    #[error("the kernel cannot be unpacked")]
    Unpack(#[from] UnpackError),
    /// The kernel wants memory that the machine does not have.
    #[error("the kernel needs memory from {start:#x} to {end:#x}; RAM there ends at {ram_end:#x}")]
    OutsideRam {
        /// First byte.
        start: u64,
        /// First byte after it.
        end: u64,
        /// Where the RAM that it would lie in ends.
        ram_end: u64,
    },
}

/// Why a guest cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel cannot be booted.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line is not one that the kernel takes.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The machine cannot be described.
    #[error(transparent)]
    Fdt(#[from] FdtError),
    /// The machine cannot be described by ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// There is no RAM.
    #[error("the platform has no RAM")]
    NoRam,
    /// The initial RAM disk cannot be read.
    #[error("the initial RAM disk cannot be read")]
    ReadInitrd {
        /// The failure.
        source: io::Error,
    },
    /// The initial RAM disk is empty.
    #[error("the initial RAM disk is empty")]
    EmptyInitrd,
    /// The initial RAM disk does not fit.
    #[error(
        "the initial RAM disk has {len} bytes, which do not fit between the kernel's end at {kernel_end:#x} and {limit:#x}"
    )]
    InitrdTooLarge {
        /// Its length in bytes.
        len: u64,
        /// Where the kernel ends.
        kernel_end: u64,
        /// Where it has to end.
        limit: u64,
    },
    /// What the machine calls RAM is not guest memory.
    #[error("the boot tables' memory at {addr:#x} is not RAM")]
    NotRam {
        /// Guest-physical address.
        addr: u64,
    },
}
