//! The configuration of guest RAM: how much, of what kind, where.

use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::host::huge_page_size;
use crate::host_page_size;

/// The addresses below 4 GiB that x86 guests expect device registers in, and no RAM. RAM that does not fit
/// below goes on at 4 GiB.
pub const MMIO_GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;

/// What guest RAM is made of.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Backing {
    /// Private memory of this process.
    #[default]
    Anonymous,
    /// A memfd, shared: vhost-user back ends can map it.
    Memfd,
    /// A memfd of 2 MiB pages from the host's pool, shared.
    Huge2M,
    /// A memfd of 1 GiB pages from the host's pool, shared.
    Huge1G,
    /// A file of the caller's.
    File(FileBacking),
}

impl Backing {
    /// The logarithm of the page size, where it is a pool's.
    pub(crate) fn huge_log(&self) -> Option<u32> {
        match self {
            Self::Anonymous | Self::Memfd => None,
            Self::Huge2M => Some(21),
            Self::Huge1G => Some(30),
            Self::File(file) => huge_page_size(&file.file).map(u64::ilog2),
        }
    }

    /// Bytes in a page of this kind: RAM is a whole number of them.
    pub fn page_size(&self) -> u64 {
        self.huge_log().map_or(host_page_size() as u64, |log| 1 << log)
    }
}

/// Guest RAM that is a part of a file: of a file on disk, a block device, or a memfd, whoever made it.
///
/// The file must not become shorter while it is mapped: a guest that touches what is missing ends the *process*
/// with `SIGBUS`. The caller sees to that; a memfd can be sealed (`F_SEAL_SHRINK`). What others write to it is seen by
/// the guest, in a private copy only until the guest writes to the page itself.
///
/// ```
/// use std::io::Write;
/// use ossature_memory::{Backing, FileBacking, Ram, RamConfig, vm_memory::GuestAddress};
///
/// let mut image = tempfile::tempfile()?;
/// image.write_all(&[7; 1 << 20])?;
/// let backing = Backing::File(FileBacking::private(image, 0));
/// let ram = Ram::new(&RamConfig::new(1 << 20).backing(backing))?;
/// assert_eq!(ram.dma().read_obj::<u8>(GuestAddress(0x1234))?, 7);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct FileBacking {
    pub(crate) file: Arc<File>,
    pub(crate) offset: u64,
    pub(crate) shared: bool,
}

impl FileBacking {
    /// The guest's own copy of the file's bytes from `offset` on, copy on write: the file never changes, and pages
    /// that are only read are shared with all other guests that have it. `file` must be open for reading.
    ///
    /// What is discarded reads as zero; [`Ram::clear`](crate::Ram::clear) brings the file's bytes back.
    pub fn private(file: impl Into<OwnedFd>, offset: u64) -> Self {
        Self { file: Arc::new(file.into().into()), offset, shared: false }
    }

    /// The file itself, from `offset` on: what the guest writes is in the file, and what others write to it is in
    /// the guest. `file` must be open for reading and writing.
    ///
    /// What is discarded is a hole in the file, which the file system must be able to punch.
    /// [`Ram::clear`](crate::Ram::clear) leaves the file as it is.
    pub fn shared(file: impl Into<OwnedFd>, offset: u64) -> Self {
        Self { shared: true, ..Self::private(file, offset) }
    }
}

/// How much RAM a guest has, and of what kind.
///
/// ```
/// use ossature_memory::{Backing, RamConfig};
///
/// let config = RamConfig::new(512 << 20).backing(Backing::Memfd).thp(true);
/// assert_eq!(config.size, 512 << 20);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RamConfig {
    /// Bytes, a multiple of [`Backing::page_size`].
    pub size: u64,
    /// What it is made of.
    pub backing: Backing,
    /// True if the host is advised to use transparent huge pages.
    pub thp: bool,
    /// True if all memory is taken from the host at once.
    pub prefault: bool,
    /// True if it may be more than the host has.
    pub overcommit: bool,
    /// True if core dumps of this process contain it.
    pub dump: bool,
    /// Addresses without RAM.
    pub gap: Range<u64>,
}

impl RamConfig {
    /// `size` bytes of private memory, neither prefaulted nor dumped, around [`MMIO_GAP`].
    pub fn new(size: u64) -> Self {
        Self {
            size,
            backing: Backing::default(),
            thp: false,
            prefault: false,
            overcommit: false,
            dump: false,
            gap: MMIO_GAP,
        }
    }

    /// Sets what it is made of.
    #[must_use]
    pub fn backing(self, backing: Backing) -> Self {
        Self { backing, ..self }
    }

    /// Advises the host to use transparent huge pages. Nothing changes for pages from a pool.
    #[must_use]
    pub fn thp(self, thp: bool) -> Self {
        Self { thp, ..self }
    }

    /// Takes all memory from the host now, and not page by page as the guest touches it.
    #[must_use]
    pub fn prefault(self, prefault: bool) -> Self {
        Self { prefault, ..self }
    }

    /// Allows more RAM than the host has.
    #[must_use]
    pub fn overcommit(self, overcommit: bool) -> Self {
        Self { overcommit, ..self }
    }

    /// Lets core dumps of this process contain the guest's memory.
    #[must_use]
    pub fn dump(self, dump: bool) -> Self {
        Self { dump, ..self }
    }

    /// Sets the addresses without RAM. An empty range makes one contiguous slot.
    #[must_use]
    pub fn gap(self, gap: Range<u64>) -> Self {
        Self { gap, ..self }
    }
}
