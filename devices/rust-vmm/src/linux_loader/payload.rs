//! A kernel that a foreign loader puts into guest memory, as what a machine runs.

use std::fs::File;
use std::marker::PhantomData;
use std::os::fd::OwnedFd;

use ::linux_loader::cmdline::Cmdline;
use ::linux_loader::loader::elf::PvhBootCapability;
use ::linux_loader::loader::{Error, KernelLoader, KernelLoaderResult, bootparam};
use ossature_boot::x86_64::smbios::Smbios;
use ossature_boot::x86_64::{self, BootSpec, Entry, Kernel, layout};
use ossature_boot::{ImageSource, Platform};
use ossature_core::Registers;
use ossature_core::machine::{Payload, PayloadError};
use ossature_memory::GuestMmap;
use ossature_memory::vm_memory::{ByteValued, GuestAddress};

use super::cmdline_of;
use super::reader::ReaderAt;

/// Distance of a bzImage's 64-bit entry point from where it is loaded.
const ENTRY_64: u64 = 0x200;
/// The first boot protocol that says whether there is one.
const VERSION_64: u16 = 0x020c;
const KERNEL_64: u16 = 1;

/// Why a kernel cannot be started that a foreign loader has loaded. On x86_64 only.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FromKernelLoaderError {
    /// The loader refused it.
    #[error("the kernel cannot be loaded")]
    Loader {
        /// Its reason.
        source: Error,
    },
    /// A bzImage without a 64-bit entry point.
    #[error("the bzImage has no 64-bit entry point: boot protocol 2.12 and a 64-bit kernel are needed")]
    NoLinux64Entry,
    /// The PVH entry point is not a 32-bit address.
    #[error("the PVH entry point {entry:#x} is not a 32-bit address")]
    PvhEntry {
        /// What the loader said.
        entry: u64,
    },
}

/// A [`Payload`] that `L` loads: [`Elf`](::linux_loader::loader::Elf), [`BzImage`](::linux_loader::loader::BzImage), or
/// one of your own. A kernel with a PVH entry point is entered there, any other by the 64-bit Linux protocol. On
/// x86_64 only.
///
/// What the loader does not do is done as for our [`Linux`](ossature_core::machine::Linux): initial RAM disk, command
/// line, memory map, tables, registers. The files are read at absolute offsets, also by a loader that seeks: other machines
/// may use the same ones. A machine that is reset loads from them again.
///
/// ```
/// use std::io::Write;
///
/// use ossature_core::machine::Payload;
/// use ossature_memory::{GuestMmap, vm_memory::GuestAddress};
/// use ossature_rust_vmm::linux_loader::{FromKernelLoader, cmdline::Cmdline, loader};
/// # let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
/// # elf.resize(16, 0);
/// # elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // type, machine, version
/// # elf.extend([0x100_0000u64, 64, 0].into_iter().flat_map(u64::to_le_bytes)); // entry, phoff, shoff
/// # elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
/// # elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD
/// # elf.extend([120u64, 0x100_0000, 0x100_0000, 1, 1, 4096].into_iter().flat_map(u64::to_le_bytes));
/// # elf.push(0xf4); // hlt
///
/// let mut file = tempfile::tempfile()?;
/// file.write_all(&elf)?; // a kernel
/// let mut kernel = FromKernelLoader::<loader::Elf>::new(file).cmdline(Cmdline::try_from("quiet", 2048)?);
///
/// // What a machine does, before its guest starts:
/// use ossature_boot::{Platform, RamRange};
/// let memory = GuestMmap::from_ranges(&[(GuestAddress(0), 64 << 20)])?;
/// let platform = Platform::new(vec![0], vec![RamRange::new(0, 64 << 20)], Vec::new());
/// let registers = kernel.load(&memory, &platform)?;
/// assert_eq!(registers.rip, 0x100_0000);
/// # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
/// ```
#[derive(Debug)]
pub struct FromKernelLoader<L> {
    kernel: File,
    initrd: Option<File>,
    cmdline: Option<Cmdline>,
    complete_cmdline: bool,
    smbios: Option<Smbios>,
    offset: Option<GuestAddress>,
    loader: PhantomData<fn() -> L>,
}

impl<L: KernelLoader> FromKernelLoader<L> {
    /// The kernel in this file, which is open for reading.
    pub fn new(kernel: impl Into<OwnedFd>) -> Self {
        let kernel = kernel.into().into();
        Self {
            kernel,
            initrd: None,
            cmdline: None,
            complete_cmdline: true,
            smbios: Some(Smbios::new()),
            offset: None,
            loader: PhantomData,
        }
    }

    /// With this initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<OwnedFd>) -> Self {
        self.initrd = Some(initrd.into().into());
        self
    }

    /// With this command line. Before it the machine puts what it needs there itself
    /// ([`machine_words`](ossature_boot::x86_64::machine_words)), but for parameters that this one sets.
    #[must_use]
    pub fn cmdline(mut self, cmdline: Cmdline) -> Self {
        self.cmdline = Some(cmdline);
        self
    }

    /// Has the machine add to the [command line](Self::cmdline), which it does by default, or leave it as it is.
    #[must_use]
    pub fn complete_cmdline(mut self, complete: bool) -> Self {
        self.complete_cmdline = complete;
        self
    }

    /// On a machine that says that it is this one. `None` leaves the SMBIOS tables out.
    #[must_use]
    pub fn smbios(mut self, smbios: impl Into<Option<Smbios>>) -> Self {
        self.smbios = smbios.into();
        self
    }

    /// What the loader gets as `kernel_offset`, whose meaning is its own.
    #[must_use]
    pub fn offset(mut self, offset: GuestAddress) -> Self {
        self.offset = Some(offset);
        self
    }
}

impl<L: KernelLoader> Payload for FromKernelLoader<L> {
    fn load(&mut self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError> {
        let high = Some(GuestAddress(layout::HIGH_RAM));
        let loaded = L::load(memory, self.offset, &mut ReaderAt::new(&self.kernel), high);
        let kernel = kernel(&loaded.map_err(|source| FromKernelLoaderError::Loader { source })?)?;
        let cmdline = self.cmdline.as_ref().map(cmdline_of).transpose()?.unwrap_or_default();
        // The kernel is in guest memory already.
        let mut spec = BootSpec::new(ImageSource::Bytes(&[]), &cmdline);
        spec.initrd = self.initrd.as_ref().map(ImageSource::File);
        spec.complete_cmdline = self.complete_cmdline;
        spec.smbios = self.smbios.as_ref();
        let booted = x86_64::describe(memory, platform, &kernel, &spec)?;
        Ok(booted.cpu.into())
    }
}

/// What a loader has loaded, in our terms.
fn kernel(loaded: &KernelLoaderResult) -> Result<Kernel<'static>, PayloadError> {
    let (load, end) = (loaded.kernel_load.0, loaded.kernel_end);
    if let Some(header) = &loaded.setup_header {
        let bootparam::setup_header { version, xloadflags, pref_address, init_size, .. } = *header;
        if version < VERSION_64 || xloadflags & KERNEL_64 == 0 {
            return Err(FromKernelLoaderError::NoLinux64Entry.into());
        }
        // It moves to the address that it prefers, if it was loaded below.
        let needed = load.max(pref_address).saturating_add(init_size.into());
        let entry = Entry::Linux64(load.saturating_add(ENTRY_64));
        return Ok(Kernel::loaded(load..end.max(needed), entry, Some(header.as_slice()))?);
    }
    // Of an ELF kernel, it is the entry point that the loader calls `kernel_load`.
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(GuestAddress(entry)) => {
            Entry::Pvh(entry.try_into().map_err(|_| FromKernelLoaderError::PvhEntry { entry })?)
        }
        _ => Entry::Linux64(load),
    };
    Ok(Kernel::loaded(layout::HIGH_RAM..end, entry, None)?)
}
