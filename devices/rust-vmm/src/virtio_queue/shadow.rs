//! A ring of the host's own, in which a foreign queue finds the chains that ours has validated.
//!
//! It lies in a region of its own at an address where no guest has RAM. A chain keeps the head that its driver gave it.
//! One of a single descriptor lies in the ring's table; any other has an indirect table. Each head has a place for one of
//! a few descriptors. Those of more, up to as many as the queue has entries, share a number of places: a driver can let
//! each of its chains be that long, and that would be the square of the size. A chain for which there is no place waits.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ::virtio_queue::desc::split::Descriptor;
use ::virtio_queue::{Queue, QueueState};
use ossature_bus::DeviceError;
use ossature_memory::vm_memory::mmap::MmapRegion;
use ossature_memory::vm_memory::{GuestAddress, GuestRegionMmap};
use ossature_memory::{DirtyBitmap, Dma, DmaError, GuestMmap, Segment, Window};
use ossature_virtio::Chain;

/// The first ring's address: above the physical addresses that a processor can have.
const BASE: u64 = 1 << 60;
/// From one ring to the next.
const STRIDE: u64 = 1 << 32;
const PAGE: u64 = 4096;
const DESCRIPTOR: u64 = 16;
/// Descriptors in a small table.
const FEW: usize = 8;
/// Descriptors in all large tables of a queue, unless that is less than the tables below. A queue of up to 181 entries has
/// one for each head.
const MANY: u64 = 1 << 15;
/// Large tables that a queue of that many entries has at least.
const TABLES: u64 = 16;

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

/// Offsets of the parts.
#[derive(Clone, Copy, Debug)]
struct Layout {
    avail: u64,
    used: u64,
    few: u64,
    many: u64,
    /// Places for large tables.
    tables: u16,
    len: u64,
}

impl Layout {
    fn new(size: u16) -> Self {
        let entries = u64::from(size);
        let avail = DESCRIPTOR * entries;
        let used = (avail + 6 + 2 * entries).next_multiple_of(4);
        let few = (used + 6 + 8 * entries).next_multiple_of(DESCRIPTOR);
        let many = (few + DESCRIPTOR * FEW as u64 * entries).next_multiple_of(PAGE);
        let tables = (MANY / entries.max(1)).clamp(TABLES, entries.max(TABLES)).min(entries);
        let len = (many + DESCRIPTOR * entries * tables).next_multiple_of(PAGE);
        Self { avail, used, few, many, tables: tables as u16, len }
    }
}

#[derive(Debug)]
pub(super) struct Shadow {
    base: u64,
    size: u16,
    layout: Layout,
    region: Arc<GuestRegionMmap<DirtyBitmap>>,
    bytes: Window,
    /// Places for large tables that are free.
    free: Vec<u16>,
    /// For each head, the place of its large table.
    taken: Box<[Option<u16>]>,
    /// The available index that the foreign queue sees.
    pub(super) avail: u16,
    /// The next used element to take.
    pub(super) used: u16,
}

impl Shadow {
    /// An empty ring for queue `index`, of `size` entries.
    pub(super) fn new(index: u16, size: u16) -> Result<Self, DeviceError> {
        let layout = Layout::new(size);
        let base = BASE + STRIDE * u64::from(index);
        let failed = |e: &dyn std::fmt::Display| {
            DeviceError::new(format!("a ring of {size} entries for queue {index} cannot be mapped: {e}"))
        };
        let len = usize::try_from(layout.len).map_err(|e| failed(&e))?;
        // Only the pages that are used take memory.
        let mapping = MmapRegion::<DirtyBitmap>::new(len).map_err(|e| failed(&e))?;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base)).ok_or_else(|| failed(&"it wraps"))?;
        let region = Arc::new(region);
        let alone = GuestMmap::from_arc_regions(vec![region.clone()]).map_err(|e| failed(&e))?;
        let dma = Dma::new(Arc::new(alone));
        let bytes = dma.window(GuestAddress(base), layout.len).map_err(|e| failed(&e))?;
        let (free, taken) = ((0..layout.tables).collect(), vec![None; size.into()].into());
        Ok(Self { base, size, layout, region, bytes, free, taken, avail: 0, used: 0 })
    }

    /// Bytes that it can take.
    #[cfg(test)]
    pub(super) fn mapped_len(&self) -> usize {
        self.bytes.len()
    }

    /// The memory that it lies in.
    pub(super) fn region(&self) -> Arc<GuestRegionMmap<DirtyBitmap>> {
        self.region.clone()
    }

    /// The foreign queue on it.
    pub(super) fn queue(&self) -> Result<Queue, DeviceError> {
        let state = QueueState {
            max_size: self.size,
            size: self.size,
            ready: true,
            desc_table: self.base,
            avail_ring: self.base + self.layout.avail,
            used_ring: self.base + self.layout.used,
            ..QueueState::default()
        };
        Queue::try_from(state).map_err(|e| DeviceError::new(e.to_string()))
    }

    /// Returns true if there is a place for any chain.
    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Returns true if there is a place for this chain.
    pub(super) fn has_room_for(&self, chain: &Chain) -> bool {
        chain.readable().len() + chain.writable().len() <= FEW || self.has_room()
    }

    /// Frees the place of this head's table.
    pub(super) fn release(&mut self, head: u16) {
        self.free.extend(self.taken.get_mut(usize::from(head)).and_then(Option::take));
    }

    /// Offers a chain that our queue has popped and for which there is a place.
    pub(super) fn offer(&mut self, chain: &Chain) -> Result<(), DmaError> {
        let (head, readable, writable) = (chain.head(), chain.readable(), chain.writable());
        let count = readable.len() + writable.len();
        let segments = readable.iter().map(|s| (s, 0)).chain(writable.iter().map(|s| (s, WRITE)));
        let slot = DESCRIPTOR * u64::from(head);
        if count == 1 {
            for (&Segment { addr, len }, flags) in segments {
                self.write(slot, Descriptor::new(addr.0, len, flags, 0))?;
            }
        } else {
            let at = if count <= FEW {
                self.layout.few + slot * FEW as u64
            } else {
                let place = self.free.pop();
                if let Some(taken) = self.taken.get_mut(usize::from(head)) {
                    *taken = place;
                }
                let none = DmaError::OutsideWindow { offset: self.bytes.len(), len: count };
                self.layout.many + DESCRIPTOR * u64::from(self.size) * u64::from(place.ok_or(none)?)
            };
            for ((&Segment { addr, len }, write), next) in segments.zip(1u16..) {
                let more = if usize::from(next) < count { NEXT } else { 0 };
                let desc = Descriptor::new(addr.0, len, write | more, if more == 0 { 0 } else { next });
                self.write(at + DESCRIPTOR * u64::from(next - 1), desc)?;
            }
            let table = Descriptor::new(self.base + at, DESCRIPTOR as u32 * count as u32, INDIRECT, 0);
            self.write(slot, table)?;
        }
        let entry = self.layout.avail + 4 + 2 * u64::from(self.avail % self.size);
        self.bytes.store(entry as usize, head.to_le(), Ordering::Relaxed)?;
        self.avail = self.avail.wrapping_add(1);
        self.bytes.store(self.layout.avail as usize + 2, self.avail.to_le(), Ordering::Release)
    }

    /// The head and the length of the next used element, which the foreign queue has written.
    pub(super) fn take_used(&mut self) -> Result<(u32, u32), DmaError> {
        let at = self.layout.used + 4 + 8 * u64::from(self.used % self.size);
        self.used = self.used.wrapping_add(1);
        let element = u64::from_le(self.bytes.read_obj(at as usize)?);
        Ok((element as u32, (element >> 32) as u32))
    }

    fn write(&self, at: u64, desc: Descriptor) -> Result<(), DmaError> {
        self.bytes.write_obj(at as usize, desc)
    }
}
