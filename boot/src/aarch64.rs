//! aarch64: everything that a guest kernel finds in memory and in its registers when it starts.

pub mod acpi;
mod check;
pub mod cpu;
mod efi;
mod error;
pub mod fdt;
mod gic;
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

/// The interrupt ids of a GIC that are each processor's own and not its software's begin here.
const PRIVATE: u32 = 16;
/// Those of devices, which all processors share, begin here: global system interrupts are interrupt ids of the GIC.
const SHARED: u32 = 32;
/// The private interrupts of the generic timer as Arm's base system architecture numbers them: secure, non-secure,
/// virtual, hypervisor.
const TIMERS: [u32; 4] = [13, 14, 11, 10];
/// That of the performance monitors.
const PMU: u32 = 7;

/// By which tables a guest learns what its machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Tables {
    /// A flattened device tree.
    #[default]
    Fdt,
    /// ACPI tables, which the kernel finds by what an EFI firmware and its own EFI stub would have left it: a device tree
    /// with nothing but `/chosen`, an EFI system table and a memory map. There are no EFI services.
    Acpi,
}

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
    /// How the machine is described.
    pub tables: Tables,
}

impl<'a> BootSpec<'a> {
    /// This kernel with this command line, without an initial RAM disk, without randomness, with a
    /// device tree.
    pub fn new(kernel: impl Into<ImageSource<'a>>, cmdline: &'a str) -> Self {
        Self { kernel: kernel.into(), initrd: None, cmdline, seed: None, tables: Tables::Fdt }
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
    /// Where the ACPI tables lie, the RSDP first, if there are any.
    pub acpi: Option<Range<u64>>,
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
    let described = Described::new(platform, ram, &chosen, spec.tables)?;

    let read = |source| KernelError::Read { source };
    let mut loaded = load::load(&kernel.source(), &[place], mem).map_err(read)?;
    if let Some((image, place)) = initrd {
        loaded += load::load(&image, &[place], mem).map_err(|source| BootError::ReadInitrd { source })?;
    }
    for (at, bytes) in &described.parts {
        mem.write_slice(bytes, GuestAddress(*at)).map_err(|_| BootError::NotRam { addr: *at })?;
    }
    Ok(Booted {
        cpu: CpuState::new(place.guest_addr, described.fdt.start),
        kernel: place.guest_addr..place.end(),
        initrd: chosen.initrd,
        fdt: described.fdt,
        acpi: described.acpi,
        loaded,
    })
}

/// The machine as its guest is told about it.
struct Described {
    fdt: Range<u64>,
    acpi: Option<Range<u64>>,
    /// What is written, by address.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Described {
    fn new(platform: &Platform, ram: RamRange, chosen: &Chosen, tables: Tables) -> Result<Self, BootError> {
        let from =
            |range: &Range<u64>| ram.base.saturating_add(range.start)..ram.base.saturating_add(range.end);
        match tables {
            Tables::Fdt => {
                let tree = fdt::blob(platform, chosen)?;
                let fdt = placed(&tree, &from(&layout::FDT))?;
                Ok(Self { parts: vec![(fdt.start, tree)], fdt, acpi: None })
            }
            Tables::Acpi => {
                let place = from(&layout::TABLES);
                let layout = efi::Layout::new(&platform.ram, &place);
                let tree = fdt::stub(chosen, &layout.efi())?;
                let fdt = placed(&tree, &from(&layout::STUB_FDT))?;
                let rsdp = place.start.saturating_add(layout.len().next_multiple_of(ACPI_ALIGN));
                let tables = acpi::tables(platform, rsdp, place.end.saturating_sub(rsdp))?;
                let acpi = Some(rsdp..rsdp + tables.len() as u64);
                let parts = vec![(fdt.start, tree), (place.start, layout.write(rsdp)), (rsdp, tables)];
                Ok(Self { fdt, acpi, parts })
            }
        }
    }
}

/// The RSDP is at a multiple of this (ACPI 6.5, 5.2.5.1).
const ACPI_ALIGN: u64 = 16;

/// Where a device tree lies that is put at the start of `place`.
fn placed(tree: &[u8], place: &Range<u64>) -> Result<Range<u64>, fdt::FdtError> {
    let (len, room) = (tree.len() as u64, place.end - place.start);
    if len > room { Err(fdt::FdtError::TooLarge { len, room }) } else { Ok(place.start..place.start + len) }
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
