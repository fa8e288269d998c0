//! x86_64: everything that a guest kernel finds in memory and in its registers when it starts.

pub mod acpi;
mod bzimage;
mod cmdline;
pub mod cpu;
mod elf;
mod error;
mod kernel;
pub mod layout;
pub mod memory_map;
mod reset_vector;
pub mod smbios;
mod start_info;
#[cfg(test)]
pub(crate) mod testing;
mod zero_page;

use std::ops::Range;

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};

use crate::image::ImageSource;
use crate::load::{self, LoadSegment, Loaded};
use crate::platform::{Platform, RamRange};
use cpu::CpuState;
use smbios::Smbios;

pub use cmdline::machine_words;
pub use error::{BootError, KernelError};
pub use kernel::{BootProtocol, Entry, Kernel, UnknownProtocol};

/// What an x86_64 kernel takes if it does not say: `COMMAND_LINE_SIZE` without the NUL.
const DEFAULT_CMDLINE_LIMIT: usize = layout::CMDLINE_SIZE - 1;

/// What the guest runs.
///
/// ```
/// # use ossature_boot::x86_64::{BootProtocol, BootSpec};
/// # let (kernel, initrd) = ([0u8; 16], [0u8; 16]);
/// let mut spec = BootSpec::new(&kernel[..], "console=ttyS0");
/// spec.initrd = Some(initrd[..].into());
/// spec.protocol = BootProtocol::Pvh;
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BootSpec<'a> {
    /// An ELF file (a 32-bit one has to have a PVH entry point) or a bzImage, as it is or packed with gzip, LZ4, XZ or
    /// zstd.
    pub kernel: ImageSource<'a>,
    /// The initial RAM disk.
    pub initrd: Option<ImageSource<'a>>,
    /// The command line: printable ASCII.
    pub cmdline: &'a str,
    /// Puts before the command line what the machine needs there, [`machine_words`]. A word whose parameter `cmdline`
    /// sets itself is left out.
    pub complete_cmdline: bool,
    /// What the machine says that it is. `None`: there are no SMBIOS tables.
    pub smbios: Option<&'a Smbios>,
    /// How the kernel is entered.
    pub protocol: BootProtocol,
}

impl<'a> BootSpec<'a> {
    /// This kernel with this command line, which is completed, without an initial RAM disk, entered by
    /// [`BootProtocol::Auto`], on a machine that is [`Smbios::new`].
    pub fn new(kernel: impl Into<ImageSource<'a>>, cmdline: &'a str) -> Self {
        static SMBIOS: Smbios = Smbios::new();
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline,
            complete_cmdline: true,
            smbios: Some(&SMBIOS),
            protocol: BootProtocol::Auto,
        }
    }
}

/// What was put where, and how the boot processor starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Booted {
    /// State of the boot processor.
    pub cpu: CpuState,
    /// How the kernel is entered.
    pub entry: Entry,
    /// The command line that the kernel was given.
    pub cmdline: String,
    /// The memory that the kernel's image fills or needs, first to last byte.
    pub kernel: Range<u64>,
    /// Where the initial RAM disk lies.
    pub initrd: Option<Range<u64>>,
    /// Address of the ACPI root pointer.
    pub rsdp: u64,
    /// How kernel and initial RAM disk got into guest memory.
    pub loaded: Loaded,
}

/// Puts a kernel and everything that it needs into guest memory, which must read as zero before.
///
/// Images are read at absolute offsets, so that a machine that is reset in place can zero its memory and call this
/// again with the same open files.
///
/// ```
/// # use ossature_boot::x86_64::{self, BootSpec};
/// # fn demo(mem: &ossature_memory::GuestMmap, platform: &ossature_boot::Platform) -> Result<(), Box<dyn std::error::Error>> {
/// let kernel = std::fs::File::open("vmlinux")?;
/// let booted = x86_64::prepare(mem, platform, &BootSpec::new(&kernel, "console=ttyS0"))?;
/// println!("entered at {:#x}", booted.cpu.rip);
/// # Ok(()) }
/// ```
pub fn prepare(mem: &GuestMmap, platform: &Platform, spec: &BootSpec) -> Result<Booted, BootError> {
    let kernel = Kernel::open(spec.kernel, spec.protocol)?;
    fits(&kernel, &platform.ram)?;
    let loaded = kernel.load(mem)?;
    let mut booted = describe(mem, platform, &kernel, spec)?;
    booted.loaded += loaded;
    Ok(booted)
}

/// Like [`prepare`] for a kernel that is already in guest memory, or that will be before the guest runs (`spec`'s own
/// is not looked at): places the initial RAM disk and writes the command line, the tables and the memory map. What it says of
/// what was [loaded](Booted::loaded) is of the initial RAM disk only.
pub fn describe(
    mem: &GuestMmap,
    platform: &Platform,
    kernel: &Kernel,
    spec: &BootSpec,
) -> Result<Booted, BootError> {
    fits(kernel, &platform.ram)?;
    let map = memory_map::memory_map(platform)?;
    let header = kernel.bzimage.as_ref().map(|bzimage| &bzimage.header);

    let limit = header.map_or(DEFAULT_CMDLINE_LIMIT, |header| header.cmdline_size.get() as usize);
    let cmdline = match spec.complete_cmdline {
        true => cmdline::complete(spec.cmdline, platform),
        false => spec.cmdline.to_owned(),
    };
    cmdline::check(&cmdline, spec.cmdline, limit.min(DEFAULT_CMDLINE_LIMIT))?;
    // The NUL after it is there: guest memory reads as zero.
    let at = layout::CMDLINE;
    mem.write_slice(cmdline.as_bytes(), GuestAddress(at)).map_err(|_| BootError::not_ram(at))?;

    let initrd = spec.initrd.map(|initrd| load_initrd(mem, platform, kernel, initrd)).transpose()?;
    let (initrd, loaded) = initrd.map_or((None, Loaded::default()), |(at, loaded)| (Some(at), loaded));
    let rsdp = layout::ACPI.start;
    let tables = acpi::tables(platform, rsdp, layout::ACPI.end - rsdp)?;
    mem.write_slice(&tables, GuestAddress(rsdp)).map_err(|_| BootError::not_ram(rsdp))?;

    if let Some(smbios) = spec.smbios {
        let at = layout::SMBIOS.start;
        let tables = smbios.tables(at, layout::SMBIOS.end - at)?;
        mem.write_slice(&tables, GuestAddress(at)).map_err(|_| BootError::not_ram(at))?;
    }
    reset_vector::write(mem, platform)?;

    let entry = kernel.entry();
    match entry {
        Entry::Pvh(_) => start_info::write(mem, &map, initrd.as_ref(), rsdp)?,
        // A kernel that was unpacked from a bzImage has left behind what its setup header speaks of.
        Entry::Linux64(_) => {
            let header = header.filter(|_| kernel.is_bzimage);
            zero_page::write(mem, &map, initrd.as_ref(), rsdp, header)?;
        }
    }
    let cpu = cpu::prepare(mem, entry, kernel.end)?;
    Ok(Booted { cpu, entry, cmdline, kernel: kernel.start()..kernel.end, initrd, rsdp, loaded })
}

/// Refuses a kernel that needs memory which is not RAM, or which the entry protocols do not reach.
fn fits(kernel: &Kernel, ram: &[RamRange]) -> Result<(), KernelError> {
    for segment in kernel.segments() {
        let below = ram.iter().rfind(|range| range.base <= segment.guest_addr);
        let ram_end = below.map_or(0, |range| range.base.saturating_add(range.len));
        let ram_end = ram_end.min(layout::INITRD_LIMIT);
        if segment.end() > ram_end {
            // All that it needs: the next segment would be the next error.
            return Err(KernelError::OutsideRam { start: kernel.start(), end: kernel.end, ram_end });
        }
    }
    Ok(())
}

/// Puts the initial RAM disk as high as it may lie, on a page boundary.
fn load_initrd(
    mem: &GuestMmap,
    platform: &Platform,
    kernel: &Kernel,
    initrd: ImageSource,
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
    let Some(place) = LoadSegment::below(limit, len, kernel.end, layout::PAGE) else {
        return Err(BootError::InitrdTooLarge { len, kernel_end: kernel.end, limit });
    };
    let loaded = load::load(&initrd, &[place], mem).map_err(|source| BootError::ReadInitrd { source })?;
    Ok((place.guest_addr..place.end(), loaded))
}

#[cfg(test)]
mod tests;
