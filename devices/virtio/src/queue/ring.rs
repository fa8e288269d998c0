//! Where the three parts of a split ring lie in guest memory, and single accesses to their fields
//! (virtio 1.2, 2.7).

use std::sync::atomic::Ordering;

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, View, Window};

use super::QueueBroken;

/// Size in bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;

/// A descriptor, copied out of guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor(virtio_queue::desc::split::Descriptor);

impl Descriptor {
    /// The descriptor of these bytes.
    pub(super) fn new(raw: virtio_queue::desc::split::Descriptor) -> Self {
        Self(raw)
    }

    /// The descriptor at `index` of a table, if the table goes that far.
    #[inline]
    pub(super) fn fetch(table: View<'_>, index: u16) -> Option<Self> {
        table.read_obj(DESCRIPTOR as usize * usize::from(index)).map(Self::new)
    }

    pub(super) fn addr(self) -> u64 {
        self.0.addr().0
    }

    pub(super) fn len(self) -> u32 {
        self.0.len()
    }

    pub(super) fn flags(self) -> u16 {
        self.0.flags()
    }

    pub(super) fn next(self) -> u16 {
        self.0.next()
    }
}

/// The parts of a ring, looked up once.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) dma: Dma,
    desc: Window,
    avail: Window,
    used: Window,
    mask: u16,
}

impl Rings {
    /// Rings of `size`, a power of two; `None` where a part is not RAM in one piece.
    pub(super) fn new(dma: Dma, size: u16, desc: u64, avail: u64, used: u64) -> Option<Self> {
        let entries = u64::from(size);
        let window = |addr, len| dma.window(GuestAddress(addr), len).ok();
        Some(Self {
            desc: window(desc, 16 * entries)?,
            avail: window(avail, 6 + 2 * entries)?,
            used: window(used, 6 + 8 * entries)?,
            mask: size.wrapping_sub(1),
            dma,
        })
    }

    /// Entries.
    pub(super) fn size(&self) -> u16 {
        self.mask.wrapping_add(1)
    }

    /// The descriptor table.
    pub(super) fn table(&self) -> Option<View<'_>> {
        self.desc.view(0, self.desc.len())
    }

    /// The table's bytes.
    pub(super) fn table_len(&self) -> usize {
        self.desc.len()
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & self.mask)
    }

    pub(super) fn avail_flags(&self) -> Result<u16, QueueBroken> {
        load(&self.avail, 0, Ordering::Relaxed)
    }

    /// The driver's index; what it published before is visible after this.
    pub(super) fn avail_index(&self) -> Result<u16, QueueBroken> {
        load(&self.avail, 2, Ordering::Acquire)
    }

    pub(super) fn avail_entry(&self, index: u16) -> Result<u16, QueueBroken> {
        let entry = self.avail.read_obj(4 + 2 * self.slot(index)).map(u16::from_le);
        entry.map_err(|_| QueueBroken::Rings)
    }

    pub(super) fn used_event(&self) -> Result<u16, QueueBroken> {
        load(&self.avail, 4 + 2 * (usize::from(self.mask) + 1), Ordering::Relaxed)
    }

    pub(super) fn set_used_flags(&self, flags: u16) -> Result<(), QueueBroken> {
        store(&self.used, 0, flags, Ordering::Relaxed)
    }

    /// Publishes all used elements before `index`.
    pub(super) fn set_used_index(&self, index: u16) -> Result<(), QueueBroken> {
        // Where writes are tracked, all elements count as written.
        self.used.mark_dirty(0, self.used.len()).map_err(|_| QueueBroken::Rings)?;
        store(&self.used, 2, index, Ordering::Release)
    }

    /// Writes an element, which is [published](Self::set_used_index) and marked as dirty with others.
    pub(super) fn set_used_element(&self, index: u16, head: u16, written: u32) -> Result<(), QueueBroken> {
        let element = u64::from(head) | u64::from(written) << 32;
        let slot = 4 + 8 * self.slot(index);
        self.used.write_obj_unmarked(slot, element.to_le()).map_err(|_| QueueBroken::Rings)
    }

    pub(super) fn set_avail_event(&self, index: u16) -> Result<(), QueueBroken> {
        store(&self.used, 4 + 8 * (usize::from(self.mask) + 1), index, Ordering::Relaxed)
    }
}

// The windows are as long as the ring and its parts are aligned, so that neither can fail.

fn load(window: &Window, at: usize, order: Ordering) -> Result<u16, QueueBroken> {
    window.load(at, order).map(u16::from_le).map_err(|_| QueueBroken::Rings)
}

fn store(window: &Window, at: usize, value: u16, order: Ordering) -> Result<(), QueueBroken> {
    window.store(at, value.to_le(), order).map_err(|_| QueueBroken::Rings)
}
