//! Where the three parts of a split ring lie in guest memory, and single accesses to their fields
//! (virtio 1.2, 2.7).

use std::sync::atomic::Ordering;

use ossature_memory::Dma;
use ossature_memory::vm_memory::{Bytes, GuestAddress};

use super::QueueBroken;

/// Size in bytes of a descriptor.
pub(super) const DESCRIPTOR: u32 = 16;

/// A descriptor, copied out of guest memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor(u128);

impl Descriptor {
    /// Reads the descriptor at `addr`.
    pub(super) fn read(dma: &Dma, addr: u64) -> Option<Self> {
        let mut bytes = [0; DESCRIPTOR as usize];
        dma.read(GuestAddress(addr), &mut bytes).ok()?;
        Some(Self(u128::from_le_bytes(bytes)))
    }

    pub(super) fn addr(self) -> u64 {
        self.0 as u64
    }

    pub(super) fn len(self) -> u32 {
        (self.0 >> 64) as u32
    }

    pub(super) fn flags(self) -> u16 {
        (self.0 >> 96) as u16
    }

    pub(super) fn next(self) -> u16 {
        (self.0 >> 112) as u16
    }
}

/// The addresses of a ring's parts, checked to be RAM before.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) dma: Dma,
    desc: u64,
    avail: u64,
    used: u64,
    mask: u16,
}

impl Rings {
    /// Rings of `size`, a power of two; `None` where a part is not RAM.
    pub(super) fn new(dma: Dma, size: u16, desc: u64, avail: u64, used: u64) -> Option<Self> {
        let entries = u64::from(size);
        for (addr, len) in [(desc, 16 * entries), (avail, 6 + 2 * entries), (used, 6 + 8 * entries)] {
            dma.check(GuestAddress(addr), len).ok()?;
        }
        Some(Self { dma, desc, avail, used, mask: size.wrapping_sub(1) })
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & self.mask)
    }

    fn load(&self, addr: u64, order: Ordering) -> Result<u16, QueueBroken> {
        let value = self.dma.memory().load(GuestAddress(addr), order);
        value.map(u16::from_le).map_err(|_| QueueBroken::Rings)
    }

    fn store(&self, addr: u64, value: u16, order: Ordering) -> Result<(), QueueBroken> {
        self.dma.memory().store(value.to_le(), GuestAddress(addr), order).map_err(|_| QueueBroken::Rings)
    }

    pub(super) fn descriptor(&self, index: u16) -> Result<Descriptor, QueueBroken> {
        Descriptor::read(&self.dma, self.desc + 16 * self.slot(index)).ok_or(QueueBroken::Rings)
    }

    pub(super) fn avail_flags(&self) -> Result<u16, QueueBroken> {
        self.load(self.avail, Ordering::Relaxed)
    }

    /// The driver's index; what it published before is visible after this.
    pub(super) fn avail_index(&self) -> Result<u16, QueueBroken> {
        self.load(self.avail + 2, Ordering::Acquire)
    }

    pub(super) fn avail_entry(&self, index: u16) -> Result<u16, QueueBroken> {
        self.load(self.avail + 4 + 2 * self.slot(index), Ordering::Relaxed)
    }

    pub(super) fn used_event(&self) -> Result<u16, QueueBroken> {
        self.load(self.avail + 4 + 2 * (u64::from(self.mask) + 1), Ordering::Relaxed)
    }

    pub(super) fn set_used_flags(&self, flags: u16) -> Result<(), QueueBroken> {
        self.store(self.used, flags, Ordering::Relaxed)
    }

    /// Publishes all used elements before `index`.
    pub(super) fn set_used_index(&self, index: u16) -> Result<(), QueueBroken> {
        self.store(self.used + 2, index, Ordering::Release)
    }

    pub(super) fn set_used_element(&self, index: u16, head: u16, written: u32) -> Result<(), QueueBroken> {
        let element = u64::from(head) | u64::from(written) << 32;
        let addr = GuestAddress(self.used + 4 + 8 * self.slot(index));
        self.dma.write(addr, &element.to_le_bytes()).map_err(|_| QueueBroken::Rings)
    }

    pub(super) fn set_avail_event(&self, index: u16) -> Result<(), QueueBroken> {
        self.store(self.used + 4 + 8 * (u64::from(self.mask) + 1), index, Ordering::Relaxed)
    }
}
