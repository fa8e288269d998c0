//! A slot: contiguous RAM, as the hypervisor and vhost peers are told about it.

use std::fmt;
use std::sync::Arc;

use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{FileOffset, GuestMemoryRegion, GuestRegionMmap};

use crate::DirtyBitmap;
use crate::mapping::CallError;

/// Names a [`RamSlot`] for as long as its [`Ram`](crate::Ram) lives: the number of a slot that was removed is not
/// used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotId(pub(crate) u64);

impl fmt::Display for SlotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "slot {}", self.0)
    }
}

/// Contiguous RAM: a KVM memory slot, a vhost-user memory region. The memory stays mapped at the same place for as
/// long as this value or a copy of it lives, also where the slot was removed.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct RamSlot {
    /// Its name.
    pub id: SlotId,
    /// First guest-physical address.
    pub guest_addr: u64,
    /// Bytes.
    pub size: u64,
    /// Where it is mapped in this process.
    pub host_addr: u64,
    region: Arc<MmapRegion<DirtyBitmap>>,
}

impl RamSlot {
    pub(crate) fn new(id: SlotId, region: &GuestRegionMmap<DirtyBitmap>) -> Self {
        Self {
            id,
            guest_addr: region.start_addr().0,
            size: region.len(),
            host_addr: region.as_ptr() as u64,
            region: region.get_mmap(),
        }
    }

    /// The shared memory file and the slot's offset in it; `None` for private memory.
    pub fn file(&self) -> Option<&FileOffset> {
        self.region.file_offset()
    }

    /// Makes its memory what it was when the slot was made; a file of somebody else's stays as it is, unless the slot is
    /// `permanent`.
    pub(crate) fn clear(&self, permanent: bool) -> Result<(), CallError> {
        let Some(mapping) = self.dirty().mapping() else { return Ok(()) };
        let (offset, len) = (mapping.offset_of(self.region.as_ptr()), self.region.size());
        if !mapping.clear(offset, len)? {
            if !permanent {
                return Ok(());
            }
            mapping.zero(offset, len)?;
        }
        self.dirty().mark_dirty(0, len);
        Ok(())
    }

    /// Which of its pages this process has written.
    pub(crate) fn dirty(&self) -> &DirtyBitmap {
        self.region.bitmap()
    }
}
