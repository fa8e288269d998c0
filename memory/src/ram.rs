//! Guest RAM: what the machine is built with, and the slots that KVM and vhost-user peers are told about.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use vm_memory::{FileOffset, GuestMemoryBackend, GuestMemoryRegion};

use crate::mapping::{self, CallError, Mapping};
use crate::{DirtyBitmap, Dma, GuestMmap, PAGE_SIZE, host};

/// The addresses below 4 GiB that x86 guests expect device registers in, and no RAM. RAM that does not fit
/// below goes on at 4 GiB.
pub const MMIO_GAP: Range<u64> = 0xc000_0000..0x1_0000_0000;

/// What guest RAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
}

impl Backing {
    /// The logarithm of the page size, where it is a pool's.
    fn huge_log(self) -> Option<u32> {
        match self {
            Self::Anonymous | Self::Memfd => None,
            Self::Huge2M => Some(21),
            Self::Huge1G => Some(30),
        }
    }

    /// Bytes in a page of this kind: RAM is a whole number of them.
    pub fn page_size(self) -> u64 {
        self.huge_log().map_or(PAGE_SIZE as u64, |log| 1 << log)
    }
}

/// How much RAM a guest has, and of what kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamConfig {
    /// Bytes, a multiple of [`Backing::page_size`].
    pub size: u64,
    /// What it is made of.
    pub backing: Backing,
    /// Advise the host to use transparent huge pages. Nothing changes for pages from a pool.
    pub thp: bool,
    /// Take all memory from the host now, and not page by page as the guest touches it.
    pub prefault: bool,
    /// Allow more RAM than the host has.
    pub overcommit: bool,
    /// Let core dumps of this process contain the guest's memory.
    pub dump: bool,
    /// Addresses without RAM; [`MMIO_GAP`] by default. An empty range makes one contiguous slot.
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
}

/// Why a guest cannot have the RAM that was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RamError {
    /// No RAM at all.
    #[error("guest memory must be larger than 0 bytes")]
    Zero,
    /// Not a whole number of pages.
    #[error("guest memory of {size} bytes is not a multiple of its page size, {page_size} bytes")]
    Unaligned {
        /// Bytes asked for.
        size: u64,
        /// Bytes in a page.
        page_size: u64,
    },
    /// The gap begins or ends inside a page, or ends before it begins.
    #[error("the gap {:#x}..{:#x} in guest memory is not a range of whole pages of {page_size} bytes", gap.start, gap.end)]
    Gap {
        /// The gap.
        gap: Range<u64>,
        /// Bytes in a page.
        page_size: u64,
    },
    /// RAM would end beyond the last address.
    #[error("guest memory of {size} bytes does not fit into the address space")]
    AddressSpace {
        /// Bytes asked for.
        size: u64,
    },
    /// More than the host has.
    #[error("guest memory of {} MiB is more than the {} MiB that the host has", size >> 20, host >> 20)]
    HostMemory {
        /// Bytes asked for.
        size: u64,
        /// Bytes that the host has.
        host: u64,
    },
    /// The host's pool of huge pages is too small.
    #[error(
        "guest memory needs {needed} huge pages of {} MiB, and {available} of the host's {total} are free",
        page_size >> 20
    )]
    HugePages {
        /// Bytes in a page.
        page_size: u64,
        /// Pages needed.
        needed: u64,
        /// Pages that nobody uses or has reserved.
        available: u64,
        /// All pages in the pool.
        total: u64,
    },
    /// The host's kernel has no huge pages of this size.
    #[error("the host has no huge pages of {} MiB", page_size >> 20)]
    HugePageSize {
        /// Bytes in a page.
        page_size: u64,
    },
    /// The host's kernel refused.
    #[error("guest memory of {} MiB: {call} failed: {source}", size >> 20)]
    Host {
        /// Bytes asked for.
        size: u64,
        /// The system call.
        call: &'static str,
        /// What it returned.
        source: io::Error,
    },
}

/// Contiguous RAM: a KVM memory slot, a vhost-user memory region.
#[derive(Clone, Copy, Debug)]
pub struct RamSlot<'a> {
    /// First guest-physical address.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is mapped in this process, for as long as the [`Ram`] or one of its [`Dma`] views lives.
    pub host_addr: u64,
    /// The shared memory file and the slot's offset in it.
    pub file: Option<&'a FileOffset>,
    /// Which of its pages this process has written.
    pub dirty: &'a DirtyBitmap,
}

/// The RAM of one guest. The mapping lives until the last [`Dma`] view is gone, too.
#[derive(Debug)]
pub struct Ram {
    map: Arc<GuestMmap>,
    size: u64,
}

impl Ram {
    /// Maps the RAM. Touches no page of it, unless it is to be prefaulted.
    pub fn new(config: &RamConfig) -> Result<Self, RamError> {
        let size = config.size;
        let pieces = split(config)?;
        let failed = |(call, source)| RamError::Host { size, call, source };
        let len = usize::try_from(size).map_err(|_| RamError::AddressSpace { size })?;

        let mut mapping = match config.backing.huge_log() {
            Some(log) => huge(config, log, len)?,
            None => {
                let host = host::total_memory();
                if size > host && !config.overcommit {
                    return Err(RamError::HostMemory { size, host });
                }
                match config.backing {
                    Backing::Memfd => {
                        mapping::memfd(size, None).and_then(|file| Mapping::shared(file, len, false))
                    }
                    _ => Mapping::anonymous(len),
                }
                .map_err(failed)?
            }
        };
        if !config.dump {
            mapping.leave_out_of_dumps().map_err(failed)?;
        }
        if config.thp && config.backing.huge_log().is_none() {
            mapping.advise(libc::MADV_HUGEPAGE).map_err(failed)?;
        }
        if config.prefault {
            mapping.prefault().map_err(failed)?;
        }
        let mapping = Arc::new(mapping);

        let mut regions = Vec::with_capacity(pieces.len());
        let mut offset = 0;
        for (guest, len) in pieces {
            regions.push(mapping.region(offset, len, guest).ok_or(RamError::AddressSpace { size })?);
            offset += len;
        }
        let map = GuestMmap::from_regions(regions).map_err(|_| RamError::AddressSpace { size })?;
        Ok(Self { map: Arc::new(map), size })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The regions, for code that works with vm-memory's traits and for the hypervisor.
    pub fn map(&self) -> &Arc<GuestMmap> {
        &self.map
    }

    /// A device's view of all RAM.
    pub fn dma(&self) -> Dma {
        Dma::new(self.map.clone())
    }

    /// The contiguous pieces, by ascending guest address.
    pub fn slots(&self) -> impl Iterator<Item = RamSlot<'_>> {
        self.map.iter().map(|region| RamSlot {
            guest_addr: region.start_addr().0,
            size: region.len(),
            host_addr: region.as_ptr() as u64,
            file: GuestMemoryRegion::file_offset(region),
            dirty: (**region).bitmap(),
        })
    }

    /// Switches dirty tracking on (all pages clean) or off, in each slot.
    pub fn track_dirty(&self, on: bool) {
        for slot in self.slots() {
            if on { slot.dirty.start() } else { slot.dirty.stop() }
        }
    }
}

/// Guest address and length of each contiguous piece.
fn split(config: &RamConfig) -> Result<Vec<(u64, usize)>, RamError> {
    let &RamConfig { size, ref gap, .. } = config;
    let page_size = config.backing.page_size();
    if size == 0 {
        return Err(RamError::Zero);
    }
    if size % page_size != 0 {
        return Err(RamError::Unaligned { size, page_size });
    }
    if gap.start > gap.end || gap.start % page_size != 0 || gap.end % page_size != 0 {
        return Err(RamError::Gap { gap: gap.clone(), page_size });
    }
    let low = if gap.is_empty() { size } else { size.min(gap.start) };
    let pieces = [(0, low), (gap.end, size - low)];
    pieces
        .into_iter()
        .filter(|&(_, len)| len != 0)
        .map(|(guest, len)| {
            guest.checked_add(len)?;
            Some((guest, usize::try_from(len).ok()?))
        })
        .collect::<Option<_>>()
        .ok_or(RamError::AddressSpace { size })
}

fn huge(config: &RamConfig, log: u32, len: usize) -> Result<Mapping, RamError> {
    let size = config.size;
    let page_size = config.backing.page_size();
    mapping::memfd(size, Some(log)).and_then(|file| Mapping::shared(file, len, true)).map_err(
        |(call, source): CallError| {
            let needed = size / page_size;
            match host::huge_pool(page_size) {
                None => RamError::HugePageSize { page_size },
                Some(pool) if source.raw_os_error() == Some(libc::ENOMEM) => {
                    RamError::HugePages { page_size, needed, available: pool.available, total: pool.total }
                }
                Some(_) => RamError::Host { size, call, source },
            }
        },
    )
}

#[cfg(test)]
mod tests;
