//! aarch64: everything that a guest kernel finds in memory and in its registers when it starts.

pub mod cpu;
mod error;
pub mod fdt;
mod kernel;
pub mod layout;
#[cfg(test)]
pub(crate) mod testing;

use std::ops::Range;

use ossature_memory::GuestMmap;
use vm_memory::{Bytes, GuestAddress};

use crate::image::ImageSource;
use crate::load::{self, LoadSegment, Loaded};
use crate::platform::{Platform, RamRange};
use cpu::CpuState;
use fdt::Chosen;

pub use error::{BootError, KernelError};
pub use kernel::Kernel;

/// What the guest runs.
///
/// ```
/// # use ossature_boot::aarch64::BootSpec;
/// # let (kernel, initrd, random) = ([0u8; 16], [0u8; 16], [0u8; 64]);
/// let mut spec = BootSpec::new(&kernel[..], "console=ttyAMA0");
/// spec.initrd = Some(initrd[..].into());
/// spec.seed = Some(&random);
/// ```
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct BootSpec<'a> {
    /// An Image, or an EFI image with one in it (zboot), as it is or packed with gzip, LZ4, XZ or zstd.
    pub kernel: ImageSource<'a>,
    /// The initial RAM disk.
    pub initrd: Option<ImageSource<'a>>,
    /// The command line: printable ASCII.
    pub cmdline: &'a str,
    /// Randomness that nobody else knows and no other guest gets: the kernel's entropy pool and its own addresses start
    /// from it.
    pub seed: Option<&'a [u8; 64]>,
}

impl<'a> BootSpec<'a> {
    /// This kernel with this command line, without an initial RAM disk, without randomness.
    pub fn new(kernel: impl Into<ImageSource<'a>>, cmdline: &'a str) -> Self {
        Self { kernel: kernel.into(), initrd: None, cmdline, seed: None }
    }
}

/// What was put where, and how the boot processor starts.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Booted {
    /// State of the boot processor.
    pub cpu: CpuState,
    /// The memory that the kernel's image fills or needs, first to last byte.
    pub kernel: Range<u64>,
    /// Where the initial RAM disk lies.
    pub initrd: Option<Range<u64>>,
    /// Where the device tree lies.
    pub fdt: Range<u64>,
    /// How kernel and initial RAM disk got into guest memory.
    pub loaded: Loaded,
}

/// Puts a kernel and everything that it needs into guest memory, which must read as zero before.
///
/// Images are read at absolute offsets, so that a machine that is reset in place can zero its memory and call this
/// again with the same open files.
///
/// ```
/// # use ossature_boot::aarch64::{self, BootSpec};
/// # fn demo(mem: &ossature_memory::GuestMmap, platform: &ossature_boot::Platform) -> Result<(), Box<dyn std::error::Error>> {
/// let kernel = std::fs::File::open("Image")?;
/// let booted = aarch64::prepare(mem, platform, &BootSpec::new(&kernel, "console=ttyAMA0"))?;
/// println!("entered at {:#x}", booted.cpu.pc);
/// # Ok(()) }
/// ```
pub fn prepare(mem: &GuestMmap, platform: &Platform, spec: &BootSpec) -> Result<Booted, BootError> {
    let kernel = Kernel::open(spec.kernel)?;
    crate::cmdline::check(spec.cmdline, layout::CMDLINE_SIZE - 1)?;
    let ram = *platform.ram.first().ok_or(BootError::NoRam)?;
    let place = place(&kernel, ram)?;
    let initrd = spec.initrd.map(|initrd| place_initrd(initrd, ram, place.end())).transpose()?;
    let chosen = Chosen {
        bootargs: spec.cmdline,
        initrd: initrd.map(|(_, place)| place.guest_addr..place.end()),
        seed: spec.seed,
    };
    let fdt = fdt::blob(platform, &chosen)?;
    let at = ram.base.saturating_add(layout::FDT.start);
    let room = layout::FDT.end - layout::FDT.start;
    if fdt.len() as u64 > room {
        return Err(fdt::FdtError::TooLarge { len: fdt.len() as u64, room }.into());
    }

    let read = |source| KernelError::Read { source };
    let mut loaded = load::load(&kernel.source(), &[place], mem).map_err(read)?;
    if let Some((image, place)) = initrd {
        loaded += load::load(&image, &[place], mem).map_err(|source| BootError::ReadInitrd { source })?;
    }
    mem.write_slice(&fdt, GuestAddress(at)).map_err(|_| BootError::NotRam { addr: at })?;
    Ok(Booted {
        cpu: CpuState::new(place.guest_addr, at),
        kernel: place.guest_addr..place.end(),
        initrd: chosen.initrd,
        fdt: at..at + fdt.len() as u64,
        loaded,
    })
}

/// Where the kernel goes: behind the device tree.
fn place(kernel: &Kernel, ram: RamRange) -> Result<LoadSegment, KernelError> {
    let ram_end = ram.base.saturating_add(ram.len);
    let start = ram.base.saturating_add(layout::FDT.end);
    let outside = |start, end| KernelError::OutsideRam { start, end, ram_end };
    let place = kernel.place(start).ok_or(outside(start, u64::MAX))?;
    if place.end() > ram_end { Err(outside(place.guest_addr, place.end())) } else { Ok(place) }
}

/// Where the initial RAM disk goes: as high as it may lie, at the beginning of a page.
fn place_initrd(
    initrd: ImageSource,
    ram: RamRange,
    kernel_end: u64,
) -> Result<(ImageSource, LoadSegment), BootError> {
    let len = initrd.size().map_err(|source| BootError::ReadInitrd { source })?;
    if len == 0 {
        return Err(BootError::EmptyInitrd);
    }
    let window = (ram.base - ram.base % layout::INITRD_ALIGN).saturating_add(layout::INITRD_WINDOW);
    let limit = ram.base.saturating_add(ram.len).min(window);
    match LoadSegment::below(limit, len, kernel_end, layout::PAGE) {
        Some(place) => Ok((initrd, place)),
        None => Err(BootError::InitrdTooLarge { len, kernel_end, limit }),
    }
}

#[cfg(test)]
mod tests;
