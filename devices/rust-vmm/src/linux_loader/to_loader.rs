//! Our loader for those who know linux-loader's.

use std::io::{Read, Seek};

use ::linux_loader::loader::elf::{self, PvhBootCapability};
use ::linux_loader::loader::{Error, KernelLoader, KernelLoaderResult, Result, bootparam, bzimage};
use ossature_boot::x86_64::{BootProtocol, Entry, Kernel, KernelError};
use ossature_boot::{ImageSource, MAX_UNPACKED};
use ossature_memory::vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, ReadVolatile};

const SETUP_HEADER: usize = 0x1f1;
/// The header ends as many bytes after this as the one before it says.
const AFTER_JUMP: usize = 0x202;

/// Our [`Kernel`] as a [`KernelLoader`]: takes an ELF kernel or a bzImage, whichever it is, and unpacks a bzImage whose
/// compression it knows, so that the guest does not have to and can be entered by PVH. It checks what theirs do not, such
/// as that the entry point lies in the kernel and that the kernel's memory is RAM.
///
/// It loads where the image says, and refuses any other `kernel_offset`. On x86_64 only.
///
/// ```
/// use std::io::Cursor;
///
/// use ossature_memory::vm_memory::{GuestAddress, GuestMemoryMmap};
/// use ossature_rust_vmm::linux_loader::ToKernelLoader;
/// use ossature_rust_vmm::linux_loader::loader::KernelLoader;
/// # let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
/// # elf.resize(16, 0);
/// # elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // type, machine, version
/// # elf.extend([0x100_0000u64, 64, 0].into_iter().flat_map(u64::to_le_bytes)); // entry, phoff, shoff
/// # elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
/// # elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // PT_LOAD
/// # elf.extend([120u64, 0x100_0000, 0x100_0000, 1, 1, 4096].into_iter().flat_map(u64::to_le_bytes));
/// # elf.push(0xf4); // hlt
///
/// let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 64 << 20)])?;
/// let loaded = ToKernelLoader::load(&memory, None, &mut Cursor::new(elf), None)?;
/// assert_eq!((loaded.kernel_load.0, loaded.kernel_end), (0x100_0000, 0x100_0001));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug)]
pub struct ToKernelLoader;

impl KernelLoader for ToKernelLoader {
    fn load<F, M: GuestMemoryBackend>(
        guest_mem: &M,
        kernel_offset: Option<GuestAddress>,
        kernel_image: &mut F,
        highmem_start_address: Option<GuestAddress>,
    ) -> Result<KernelLoaderResult>
    where
        F: Read + ReadVolatile + Seek,
    {
        if kernel_offset.is_some_and(|offset| offset.0 != 0) {
            return Err(Error::InvalidKernelStartAddress);
        }
        let mut image = Vec::new();
        kernel_image.rewind().map_err(|_| elf::Error::SeekElfStart)?;
        let read = kernel_image.take(MAX_UNPACKED).read_to_end(&mut image);
        read.map_err(|_| elf::Error::ReadKernelImage)?;
        let kernel = Kernel::open(ImageSource::Bytes(&image), BootProtocol::Auto).map_err(error)?;

        let bytes = kernel.unpacked().unwrap_or(&image);
        let low = highmem_start_address.unwrap_or_default().0;
        for segment in kernel.segments() {
            if segment.guest_addr < low {
                return Err(Error::InvalidKernelStartAddress);
            }
            let at = GuestAddress(segment.guest_addr);
            let len = usize::try_from(segment.mem_len).map_err(|_| Error::MemoryOverflow)?;
            if !GuestMemoryBackend::check_range(guest_mem, at, len) {
                return Err(Error::MemoryOverflow);
            }
            let end = segment.file_offset.saturating_add(segment.file_len);
            let data = bytes.get(segment.file_offset as usize..end as usize);
            let data = data.ok_or(elf::Error::ReadKernelImage)?;
            guest_mem.write_slice(data, at).map_err(|_| Error::MemoryOverflow)?;
        }
        let starts = kernel.segments().iter().map(|segment| segment.guest_addr);
        let ends = kernel.segments().iter().map(|segment| segment.guest_addr.saturating_add(segment.mem_len));
        let mut loaded = KernelLoaderResult {
            kernel_load: GuestAddress(starts.min().unwrap_or_default()),
            kernel_end: ends.max().unwrap_or_default(),
            ..KernelLoaderResult::default()
        };
        match kernel.entry() {
            Entry::Pvh(entry) => {
                loaded.pvh_boot_cap = PvhBootCapability::PvhEntryPresent(GuestAddress(entry.into()));
            }
            Entry::Linux64(entry) if image.starts_with(b"\x7fELF") || kernel.unpacked().is_some() => {
                loaded.kernel_load = GuestAddress(entry);
                loaded.pvh_boot_cap = PvhBootCapability::PvhEntryNotPresent;
            }
            _ => loaded.setup_header = Some(setup_header(&image, loaded.kernel_load)),
        }
        Ok(loaded)
    }
}

/// The setup header of a bzImage that is loaded at `at`, which a kernel has that was opened.
fn setup_header(image: &[u8], at: GuestAddress) -> bootparam::setup_header {
    let mut header = bootparam::setup_header::default();
    let end = AFTER_JUMP + usize::from(image.get(AFTER_JUMP - 1).copied().unwrap_or_default());
    let found = image.get(SETUP_HEADER..end).unwrap_or_default();
    for (to, from) in header.as_mut_slice().iter_mut().zip(found) {
        *to = *from;
    }
    header.code32_start = at.0 as u32;
    header
}

/// The nearest that linux-loader has a name for.
fn error(error: KernelError) -> Error {
    match error {
        KernelError::Read { .. } => elf::Error::ReadKernelImage.into(),
        KernelError::NotAKernel | KernelError::WrongArchitecture { .. } => {
            elf::Error::InvalidElfMagicNumber.into()
        }
        KernelError::InvalidPvhNote { .. } => elf::Error::InvalidPvhNote.into(),
        KernelError::EntryOutsideKernel { .. } => elf::Error::InvalidEntryAddress.into(),
        KernelError::OverlapsBootTables { .. } => Error::InvalidKernelStartAddress,
        KernelError::OutsideRam { .. } => Error::MemoryOverflow,
        KernelError::InvalidBzImage { .. }
        | KernelError::NoLinux64Entry { .. }
        | KernelError::NeedsRealMode { .. }
        | KernelError::NoEntry { .. }
        | KernelError::Unpack(_) => bzimage::Error::InvalidBzImage.into(),
        _ => elf::Error::InvalidProgramHeaderAddress.into(),
    }
}
