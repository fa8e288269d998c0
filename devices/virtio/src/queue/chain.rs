//! Descriptor chains: one walk that reads each descriptor once and bounds everything.

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Segment};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

use super::QueueBroken;
use super::ring::{DESCRIPTOR, Descriptor, Rings};

const NEXT: u16 = VRING_DESC_F_NEXT as u16;
const WRITE: u16 = VRING_DESC_F_WRITE as u16;
const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

/// One descriptor chain, parsed once and bounded, as plain data in host memory. Every segment is RAM from
/// its first to its last byte, none is empty, there is at least one, there are at most as many as the
/// queue has entries, and together they are shorter than 4 GiB.
///
/// The device owns the chain until [`VirtQueue::complete`](crate::VirtQueue::complete) consumes it. One
/// that is dropped instead stays with the device until it is reset.
#[derive(Debug)]
#[must_use]
pub struct Chain {
    head: u16,
    readable: u16,
    readable_len: u32,
    writable_len: u32,
    segments: Vec<Segment>,
}

impl Chain {
    /// The head's index in the descriptor table.
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver wrote for the device, in order.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..usize::from(self.readable)).unwrap_or_default()
    }

    /// Where the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(usize::from(self.readable)..).unwrap_or_default()
    }

    /// Bytes in [`readable`](Self::readable).
    pub fn readable_len(&self) -> u32 {
        self.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    pub fn writable_len(&self) -> u32 {
        self.writable_len
    }

    /// The storage, for the next chain.
    pub(super) fn into_storage(self) -> Vec<Segment> {
        self.segments
    }

    /// Walks the chain from `head`, below the queue's `size`. `storage` is reused for its segments.
    pub(super) fn parse(
        rings: &Rings,
        indirect: bool,
        size: u16,
        head: u16,
        mut storage: Vec<Segment>,
    ) -> Result<Self, QueueBroken> {
        storage.clear();
        let mut walk = Walk { size, readable: 0, readable_len: 0, writable_len: 0, segments: storage };
        let mut at = head;
        loop {
            let desc = rings.descriptor(at)?;
            if desc.flags() & INDIRECT != 0 {
                if !indirect || desc.flags() & NEXT != 0 {
                    return Err(QueueBroken::Indirect);
                }
                walk.indirect(&rings.dma, desc)?;
                break;
            }
            walk.push(&rings.dma, desc)?;
            if desc.flags() & NEXT == 0 {
                break;
            }
            at = desc.next();
            if at >= size {
                return Err(QueueBroken::Next { next: at, len: size });
            }
        }
        let Walk { size: _, readable, readable_len, writable_len, segments } = walk;
        Ok(Self { head, readable, readable_len, writable_len, segments })
    }
}

/// A chain as far as it was walked. Every step pushes a segment and there are at most `size` of them:
/// that ends any loop.
struct Walk {
    size: u16,
    readable: u16,
    readable_len: u32,
    writable_len: u32,
    segments: Vec<Segment>,
}

impl Walk {
    fn push(&mut self, dma: &Dma, desc: Descriptor) -> Result<(), QueueBroken> {
        let (addr, len) = (desc.addr(), desc.len());
        if self.segments.len() >= usize::from(self.size) {
            return Err(QueueBroken::ChainLength { size: self.size });
        }
        if len == 0 {
            return Err(QueueBroken::EmptyDescriptor);
        }
        dma.check(GuestAddress(addr), u64::from(len)).map_err(|_| QueueBroken::NotRam { addr, len })?;
        if desc.flags() & WRITE != 0 {
            self.writable_len = self.writable_len.checked_add(len).ok_or(QueueBroken::ChainBytes)?;
        } else if self.writable_len != 0 {
            return Err(QueueBroken::Order);
        } else {
            self.readable += 1;
            self.readable_len = self.readable_len.checked_add(len).ok_or(QueueBroken::ChainBytes)?;
        }
        if self.readable_len.checked_add(self.writable_len).is_none() {
            return Err(QueueBroken::ChainBytes);
        }
        self.segments.push(Segment { addr: GuestAddress(addr), len });
        Ok(())
    }

    /// Follows the table that `desc` refers to. Its write flag means nothing (2.7.5.3.2).
    fn indirect(&mut self, dma: &Dma, desc: Descriptor) -> Result<(), QueueBroken> {
        let (table, len) = (desc.addr(), desc.len());
        let entries = match u16::try_from(len / DESCRIPTOR) {
            Ok(entries) if len % DESCRIPTOR == 0 && (1..=self.size).contains(&entries) => entries,
            _ => return Err(QueueBroken::IndirectTable { len }),
        };
        let not_ram = QueueBroken::NotRam { addr: table, len };
        dma.check(GuestAddress(table), u64::from(len)).map_err(|_| not_ram)?;
        let mut at = 0;
        loop {
            let desc = Descriptor::read(dma, table + u64::from(DESCRIPTOR) * u64::from(at)).ok_or(not_ram)?;
            if desc.flags() & INDIRECT != 0 {
                return Err(QueueBroken::Indirect);
            }
            self.push(dma, desc)?;
            if desc.flags() & NEXT == 0 {
                return Ok(());
            }
            at = desc.next();
            if at >= entries {
                return Err(QueueBroken::Next { next: at, len: entries });
            }
        }
    }
}
