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
// A box, so that chains move as a pointer and their storage can be used again.
#[derive(Debug)]
#[must_use]
pub struct Chain(pub(super) Box<Parsed>);

/// What a [`Chain`] holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    head: u16,
    /// How many of `segments` are readable, and how many there are: the rest is room.
    readable: usize,
    count: usize,
    readable_len: u32,
    writable_len: u32,
    segments: Vec<Segment>,
}

impl Chain {
    /// The head's index in the descriptor table.
    pub fn head(&self) -> u16 {
        self.0.head
    }

    /// What the driver wrote for the device, in order.
    pub fn readable(&self) -> &[Segment] {
        self.0.segments.get(..self.0.readable).unwrap_or_default()
    }

    /// Where the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.0.segments.get(self.0.readable..self.0.count).unwrap_or_default()
    }

    /// Bytes in [`readable`](Self::readable).
    pub fn readable_len(&self) -> u32 {
        self.0.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    pub fn writable_len(&self) -> u32 {
        self.0.writable_len
    }
}

/// Where a walk through one table ends.
enum End {
    /// With the last descriptor.
    Last,
    /// With a reference to an indirect table.
    Indirect(Descriptor),
}

impl Parsed {
    /// Walks the chain from `head`, below the queue's `size`. An indirect table, if `indirect` allows one,
    /// is copied into `copy` first.
    pub(super) fn walk(
        &mut self,
        rings: &Rings,
        indirect: bool,
        size: u16,
        head: u16,
        copy: &mut Vec<u8>,
    ) -> Result<(), QueueBroken> {
        let mut walk =
            Walk { dma: &rings.dma, size, chain: self, count: 0, readable: 0, total: 0, readable_len: 0 };
        if let End::Indirect(desc) = walk.table(head, size, |at| rings.descriptor(at))? {
            // Its write flag means nothing (2.7.5.3.2).
            if !indirect || desc.flags() & NEXT != 0 {
                return Err(QueueBroken::Indirect);
            }
            let (addr, len) = (desc.addr(), desc.len());
            let entries = match u16::try_from(len / DESCRIPTOR) {
                Ok(entries) if len % DESCRIPTOR == 0 && (1..=size).contains(&entries) => entries,
                _ => return Err(QueueBroken::IndirectTable { len }),
            };
            if copy.len() < len as usize {
                copy.resize(len as usize, 0);
            }
            let table = copy.get_mut(..len as usize).ok_or(QueueBroken::Rings)?;
            rings.dma.read(GuestAddress(addr), table).map_err(|_| QueueBroken::NotRam { addr, len })?;
            let end =
                walk.table(0, entries, |at| Descriptor::in_table(table, at).ok_or(QueueBroken::Rings))?;
            if let End::Indirect(_) = end {
                return Err(QueueBroken::Indirect);
            }
        }
        let Walk { count, readable, total, readable_len, .. } = walk;
        self.head = head;
        self.count = count;
        self.readable = readable;
        let fits = |len: u64| u32::try_from(len).map_err(|_| QueueBroken::ChainBytes);
        fits(total)?;
        self.readable_len = fits(readable_len)?;
        self.writable_len = fits(total - readable_len)?;
        Ok(())
    }
}

/// A chain as far as it was walked.
struct Walk<'a> {
    dma: &'a Dma,
    size: u16,
    chain: &'a mut Parsed,
    count: usize,
    readable: usize,
    /// Bytes: at most 32768 times 4 GiB.
    total: u64,
    readable_len: u64,
}

impl Walk<'_> {
    /// Follows a table of `entries` from `at`, which is below it. Each round adds a segment, and there are
    /// at most `size`: that ends any loop.
    #[inline]
    fn table(
        &mut self,
        mut at: u16,
        entries: u16,
        fetch: impl Fn(u16) -> Result<Descriptor, QueueBroken>,
    ) -> Result<End, QueueBroken> {
        loop {
            let desc = fetch(at)?;
            let (addr, len, flags) = (desc.addr(), desc.len(), desc.flags());
            if flags & INDIRECT != 0 {
                return Ok(End::Indirect(desc));
            }
            if len == 0 {
                return Err(QueueBroken::EmptyDescriptor);
            }
            if self.dma.check(GuestAddress(addr), len.into()).is_err() {
                return Err(QueueBroken::NotRam { addr, len });
            }
            self.total += u64::from(len);
            if flags & WRITE == 0 {
                if self.readable != self.count {
                    return Err(QueueBroken::Order);
                }
                self.readable += 1;
                self.readable_len = self.total;
            }
            let segment = Segment { addr: GuestAddress(addr), len };
            match self.chain.segments.get_mut(self.count) {
                Some(room) => *room = segment,
                None if self.count < usize::from(self.size) => self.chain.segments.push(segment),
                None => return Err(QueueBroken::ChainLength { size: self.size }),
            }
            self.count += 1;
            if flags & NEXT == 0 {
                return Ok(End::Last);
            }
            at = desc.next();
            if at >= entries {
                return Err(QueueBroken::Next { next: at, len: entries });
            }
        }
    }
}
