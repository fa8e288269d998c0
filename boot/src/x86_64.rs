//! x86_64: everything that a guest kernel finds in memory and in its registers when it starts.

pub mod cpu;
pub mod layout;
pub mod memory_map;
mod reset_vector;
mod start_info;
mod zero_page;

use std::io;
use std::ops::Range;

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};

use crate::acpi::{self, AcpiError};
use crate::cmdline::{self, CmdlineError};
use crate::elf::Segment;
use crate::kernel::{BootProtocol, Entry, Kernel, KernelError};
use crate::load::{self, Loaded};
use crate::platform::{Platform, RamRange};
use crate::source::Source;
use cpu::CpuState;

const PAGE: u64 = 4096;
/// What an x86_64 kernel takes if it does not say: `COMMAND_LINE_SIZE` without the NUL.
const DEFAULT_CMDLINE_LIMIT: usize = layout::CMDLINE_SIZE - 1;

/// What the guest runs.
#[derive(Clone, Copy, Debug)]
pub struct BootSpec<'a> {
    /// An ELF `vmlinux` or a bzImage.
    pub kernel: Source<'a>,
    /// The initial RAM disk.
    pub initrd: Option<Source<'a>>,
    /// The command line: printable ASCII.
    pub cmdline: &'a str,
    /// How the kernel is entered.
    pub protocol: BootProtocol,
}

/// What was put where, and how the boot processor starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Booted {
    /// State of the boot processor.
    pub cpu: CpuState,
    /// How the kernel is entered.
    pub entry: Entry,
    /// The memory that the kernel's image fills or needs, first to last byte.
    pub kernel: Range<u64>,
    /// Where the initial RAM disk lies.
    pub initrd: Option<Range<u64>>,
    /// Address of the ACPI root pointer.
    pub rsdp: u64,
    /// How kernel and initial RAM disk got into guest memory.
    pub loaded: Loaded,
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
    fn not_ram(addr: u64) -> Self {
        Self::NotRam { addr }
    }
}

/// Where the parts lie that the kernel is told about.
struct Placed {
    initrd: Option<Range<u64>>,
    rsdp: u64,
}

/// Puts a kernel and everything that it needs into guest memory, which must read as zero before.
///
/// ```
/// # use ossature_boot::x86_64::{self, BootSpec};
/// # fn demo(mem: &ossature_memory::GuestMmap, platform: &ossature_boot::Platform) -> Result<(), Box<dyn std::error::Error>> {
/// let kernel = std::fs::File::open("vmlinux")?;
/// let booted = x86_64::prepare(mem, platform, &BootSpec {
///     kernel: (&kernel).into(),
///     initrd: None,
///     cmdline: "console=ttyS0",
///     protocol: Default::default(),
/// })?;
/// println!("entered at {:#x}", booted.cpu.rip);
/// # Ok(()) }
/// ```
pub fn prepare(mem: &GuestMmap, platform: &Platform, spec: &BootSpec) -> Result<Booted, BootError> {
    let kernel = Kernel::open(spec.kernel, spec.protocol)?;
    fits(&kernel, &platform.ram)?;
    let loaded = kernel.load(mem)?;
    let mut booted = describe(mem, platform, &kernel, spec.initrd, spec.cmdline)?;
    booted.loaded += loaded;
    Ok(booted)
}

/// Like [`prepare`] for a kernel that is already in guest memory, or that will be before the guest runs:
/// places the initial RAM disk and writes the command line, the tables and the memory map. What it says of
/// what was [loaded](Booted::loaded) is of the initial RAM disk only.
pub fn describe(
    mem: &GuestMmap,
    platform: &Platform,
    kernel: &Kernel,
    initrd: Option<Source>,
    cmdline: &str,
) -> Result<Booted, BootError> {
    fits(kernel, &platform.ram)?;
    let map = memory_map::memory_map(&platform.ram)?;
    let header = kernel.bzimage.as_ref().map(|bzimage| &bzimage.header);

    let limit = header.map_or(DEFAULT_CMDLINE_LIMIT, |header| header.cmdline_size.get() as usize);
    cmdline::check(cmdline, limit.min(DEFAULT_CMDLINE_LIMIT))?;
    // The NUL behind it is there: guest memory reads as zero.
    let at = layout::CMDLINE;
    mem.write_slice(cmdline.as_bytes(), GuestAddress(at)).map_err(|_| BootError::not_ram(at))?;

    let initrd = initrd.map(|initrd| load_initrd(mem, platform, kernel, initrd)).transpose()?;
    let (initrd, loaded) = initrd.map_or((None, Loaded::default()), |(at, loaded)| (Some(at), loaded));
    let rsdp = layout::ACPI.start;
    let tables = acpi::tables(platform, rsdp, layout::ACPI.end - rsdp)?;
    mem.write_slice(&tables, GuestAddress(rsdp)).map_err(|_| BootError::not_ram(rsdp))?;

    reset_vector::write(mem, platform)?;

    let entry = kernel.entry();
    let placed = Placed { initrd, rsdp };
    match entry {
        Entry::Pvh(_) => start_info::write(mem, &map, &placed)?,
        // An unpacked kernel has left behind what its setup header speaks of.
        Entry::Linux64(_) => {
            let header = header.filter(|_| kernel.unpacked().is_none());
            zero_page::write(mem, &map, &placed, header)?;
        }
    }
    let cpu = cpu::prepare(mem, entry, kernel.end)?;
    let start = kernel.segments().iter().map(|segment| segment.guest_addr).min().unwrap_or_default();
    Ok(Booted { cpu, entry, kernel: start..kernel.end, initrd: placed.initrd, rsdp, loaded })
}

/// Refuses a kernel that needs memory which is not RAM, or which the entry protocols do not reach.
fn fits(kernel: &Kernel, ram: &[RamRange]) -> Result<(), KernelError> {
    for segment in kernel.segments() {
        let (start, end) = (segment.guest_addr, segment.end());
        let below = ram.iter().rfind(|range| range.base <= start);
        let ram_end = below.map_or(0, |range| range.base.saturating_add(range.len));
        if end > ram_end || end > layout::INITRD_LIMIT {
            return Err(KernelError::OutsideRam { start, end, ram_end: ram_end.min(layout::INITRD_LIMIT) });
        }
    }
    Ok(())
}

/// Puts the initial RAM disk as high as it may lie, on a page boundary.
fn load_initrd(
    mem: &GuestMmap,
    platform: &Platform,
    kernel: &Kernel,
    initrd: Source,
) -> Result<(Range<u64>, Loaded), BootError> {
    let len = initrd.size().map_err(|source| BootError::ReadInitrd { source })?;
    if len == 0 {
        return Err(BootError::EmptyInitrd);
    }
    let ram_end = platform.ram.first().map_or(0, |range| range.len);
    // The highest address that the last byte may have; 0 in a header that does not say.
    let allowed = kernel.bzimage.as_ref().map(|bzimage| u64::from(bzimage.header.initrd_addr_max.get()));
    let allowed = allowed.filter(|&max| max != 0).map_or(layout::INITRD_LIMIT, |max| max + 1);
    let limit = ram_end.min(allowed).min(layout::INITRD_LIMIT);
    let start = limit.checked_sub(len).map(|start| start & !(PAGE - 1)).filter(|&start| start >= kernel.end);
    let Some(start) = start else {
        return Err(BootError::InitrdTooLarge { len, kernel_end: kernel.end, limit });
    };
    let place = Segment { file_offset: 0, file_len: len, guest_addr: start, mem_len: len };
    let loaded = load::load(&initrd, &[place], mem).map_err(|source| BootError::ReadInitrd { source })?;
    Ok((start..start + len, loaded))
}

#[cfg(test)]
mod tests;
