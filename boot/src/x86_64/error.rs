//! Why a kernel is refused or a guest cannot be prepared.

use std::io;

use super::layout;
use super::smbios::SmbiosError;
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
    /// Neither ELF nor bzImage, nor one of these packed as a file.
    #[error("not a kernel: neither an ELF file nor a bzImage, as it is or packed with gzip, LZ4, XZ or zstd")]
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
    /// An ELF32 kernel, which has no 64-bit entry point, without a PVH note.
    #[error(
        "the kernel is a 32-bit ELF file, which can only be entered by PVH, and it has no PVH entry point"
    )]
    Elf32WithoutPvh,
    /// An ELF32 kernel that was to be entered in 64-bit mode.
    #[error("the kernel is a 32-bit ELF file, which has no 64-bit entry point: enter it by PVH")]
    Elf32,
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
    /// A bzImage that has neither a 64-bit entry point nor a payload that can be unpacked and booted.
    #[error("the bzImage has no 64-bit entry point (boot protocol {}.{:02}, 2.12 and a 64-bit kernel are needed), \
        and what it contains cannot be booted", version >> 8, version & 0xff)]
    NoEntry {
        /// Its boot protocol version, as the header encodes it.
        version: u16,
        /// Why what it contains cannot be booted.
        source: Box<KernelError>,
    },
    /// A bzImage that is entered in real mode.
    #[error("the bzImage needs the 16-bit entry, which this machine does not have (boot protocol {}.{:02}): it takes \
        an ELF file, or a bzImage of protocol 2.08 with a kernel to unpack or of 2.12 with a 64-bit entry point",
        version >> 8, version & 0xff)]
    NeedsRealMode {
        /// Its boot protocol version, as the header encodes it.
        version: u16,
    },
    /// The kernel is packed and cannot be unpacked.
    #[error("the kernel cannot be unpacked")]
    Unpack(#[from] UnpackError),
    /// The kernel wants memory that the machine does not have.
    #[error("the kernel needs memory from {start:#x} to {end:#x}; RAM there ends at {ram_end:#x}")]
    OutsideRam {
        /// First byte of all that it needs.
        start: u64,
        /// First byte after all that it needs.
        end: u64,
        /// Where the RAM ends that holds the first byte of the segment without room, or else the RAM below it.
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

/// Why a guest cannot be prepared.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The command line.
    #[error(transparent)]
    Cmdline(#[from] CmdlineError),
    /// The ACPI tables.
    #[error(transparent)]
    Acpi(#[from] AcpiError),
    /// The SMBIOS tables.
    #[error(transparent)]
    Smbios(#[from] SmbiosError),
    /// The initial RAM disk cannot be read.
    #[error("the initrd cannot be read")]
    ReadInitrd {
        /// The failure.
        source: io::Error,
    },
    /// The initial RAM disk has no bytes.
    #[error("the initrd is empty")]
    EmptyInitrd,
    /// There is no room for the initial RAM disk.
    #[error("the initrd of {len} bytes does not fit: between the kernel's end at {kernel_end:#x} and the limit at \
        {limit:#x} there are {} bytes", limit.saturating_sub(*kernel_end))]
    InitrdTooLarge {
        /// Its size in bytes.
        len: u64,
        /// End of the memory that the kernel needs.
        kernel_end: u64,
        /// Where the initial RAM disk has to end: the end of low RAM, or what the kernel allows.
        limit: u64,
    },
    /// RAM does not cover what every PC has.
    #[error("RAM has to begin at address 0 and exceed 1 MiB; {len} bytes begin there")]
    NoLowRam {
        /// Length of the RAM at address 0.
        len: u64,
    },
    /// A range of RAM is empty, wraps, overlaps the one before or lies below it.
    #[error("RAM range {base:#x}+{len:#x} is empty, out of order or overlaps the one before")]
    BadRamRange {
        /// First byte.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// More ranges of RAM than the memory map has room for.
    #[error("{count} ranges of RAM; the memory map has room for {limit}")]
    TooManyRamRanges {
        /// How many there are.
        count: usize,
        /// How many are possible.
        limit: usize,
    },
    /// The platform lists RAM that the guest memory does not have.
    #[error("guest memory at {addr:#x} is not backed by RAM, although the platform says so")]
    NotRam {
        /// Guest-physical address.
        addr: u64,
    },
}

impl BootError {
    pub(super) fn not_ram(addr: u64) -> Self {
        Self::NotRam { addr }
    }
}
