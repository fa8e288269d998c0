//! Descriptor chains: one walk that reads each descriptor once and bounds everything.

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Segment, View};
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
    /// How many of `segments` are readable, and how many after these are writable: the rest is room.
    readable: u16,
    writable: u16,
    readable_len: u32,
    writable_len: u32,
    segments: Vec<Segment>,
}

impl Chain {
    /// The head's index in the descriptor table.
    #[inline]
    pub fn head(&self) -> u16 {
        self.0.head
    }

    /// What the driver wrote for the device, in order.
    #[inline]
    pub fn readable(&self) -> &[Segment] {
        self.parts().0
    }

    /// Where the device may write, in order.
    #[inline]
    pub fn writable(&self) -> &[Segment] {
        self.parts().1
    }

    #[inline]
    fn parts(&self) -> (&[Segment], &[Segment]) {
        let Parsed { segments, readable, writable, .. } = &*self.0;
        let (first, rest) = segments.split_at_checked(usize::from(*readable)).unwrap_or_default();
        (first, rest.get(..usize::from(*writable)).unwrap_or_default())
    }

    /// Bytes in [`readable`](Self::readable).
    #[inline]
    pub fn readable_len(&self) -> u32 {
        self.0.readable_len
    }

    /// Bytes in [`writable`](Self::writable).
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.0.writable_len
    }
}

impl Parsed {
    /// Walks the chain from `head`, below the queue's size, into an indirect table if `indirect` allows one.
    ///
    /// The loop takes descriptors as nearly all are: buffers in the same RAM as the last one, for which there
    /// is a place. It calls nothing, so that it runs in registers, and leaves whatever is special to
    /// [`Walk::go_on`].
    #[inline]
    pub(super) fn walk(&mut self, rings: &mut Rings, indirect: bool, head: u16) -> Result<(), QueueBroken> {
        self.head = head;
        let mut place = Table::Ring;
        let mut table = rings.table().ok_or(QueueBroken::Rings)?;
        let mut next = Descriptor::fetch(table, head).ok_or(head);
        if let Ok(desc) = next {
            if desc.flags() & INDIRECT != 0 {
                place = Table::enter(rings, indirect, desc)?;
                // A table that is not in one region has no view, and is left to the rest of the walk.
                table = place.view(rings).unwrap_or_default();
                next = Descriptor::fetch(table, 0).ok_or(0);
            }
        }
        let run = &rings.run;
        let places = self.segments.len();
        let mut free = self.segments.iter_mut();
        let (mut direction, mut total) = (0, 0u32);
        // Each round fills a place, and there are at most as many as the queue has entries.
        while let Ok(desc) = next {
            let (addr, len, flags) = (GuestAddress(desc.addr()), desc.len(), desc.flags());
            if flags & (WRITE | INDIRECT) != direction {
                if flags & (WRITE | INDIRECT) != WRITE {
                    break;
                }
                self.readable = (places - free.len()) as u16;
                self.readable_len = total;
                direction = WRITE;
            }
            if !run.holds(addr, len.into()) {
                break;
            }
            let Some(sum) = total.checked_add(len) else { break };
            let Some(segment) = free.next() else { break };
            *segment = Segment { addr, len };
            total = sum;
            if flags & NEXT == 0 {
                Walk { count: (places - free.len()) as u16, direction, total }.end(self);
                return Ok(());
            }
            next = Descriptor::fetch(table, desc.next()).ok_or(desc.next());
        }
        let walk = Walk { count: (places - free.len()) as u16, direction, total };
        walk.go_on(self, rings, indirect, place, next)
    }
}

/// The table that a walk is in.
#[derive(Clone, Copy)]
enum Table {
    /// The ring's own.
    Ring,
    /// An indirect one: its address and how many descriptors it has.
    Indirect(GuestAddress, u16),
}

impl Table {
    /// The table that `desc` refers to, if `allowed`. Its write flag means nothing (2.7.5.3.2).
    #[inline]
    fn enter(rings: &Rings, allowed: bool, desc: Descriptor) -> Result<Self, QueueBroken> {
        if !allowed || desc.flags() & NEXT != 0 {
            return Err(QueueBroken::Indirect);
        }
        let (addr, len) = (desc.addr(), desc.len());
        let entries = match u16::try_from(len / DESCRIPTOR) {
            Ok(entries) if len % DESCRIPTOR == 0 && (1..=rings.size()).contains(&entries) => entries,
            _ => return Err(QueueBroken::IndirectTable { len }),
        };
        let ram = rings.dma.check(GuestAddress(addr), len.into());
        ram.map(|()| Self::Indirect(GuestAddress(addr), entries))
            .map_err(|_| QueueBroken::NotRam { addr, len })
    }

    /// All of it, if it lies in one region.
    #[inline]
    fn view(self, rings: &Rings) -> Option<View<'_>> {
        match self {
            Self::Ring => rings.table(),
            Self::Indirect(addr, entries) => rings.dma.view(addr, DESCRIPTOR as usize * usize::from(entries)),
        }
    }

    /// The descriptor at `index`.
    fn fetch(self, rings: &Rings, index: u16) -> Result<Descriptor, QueueBroken> {
        let (desc, len) = match self {
            Self::Ring => (rings.table().and_then(|table| Descriptor::fetch(table, index)), rings.size()),
            Self::Indirect(addr, entries) => {
                let at = GuestAddress(addr.0 + u64::from(DESCRIPTOR) * u64::from(index));
                let inside = (index < entries).then(|| rings.dma.read_obj(at).ok().map(Descriptor::new));
                (inside.flatten(), entries)
            }
        };
        desc.ok_or(QueueBroken::Next { next: index, len })
    }
}

/// How far a chain was walked.
#[derive(Clone, Copy, Default)]
struct Walk {
    /// Segments.
    count: u16,
    /// The last one's write flag.
    direction: u16,
    /// Bytes in all of them.
    total: u32,
}

impl Walk {
    /// Goes on to the end from any descriptor, or from the index of one that has yet to be read.
    #[cold]
    fn go_on(
        mut self,
        chain: &mut Parsed,
        rings: &mut Rings,
        indirect: bool,
        mut table: Table,
        mut next: Result<Descriptor, u16>,
    ) -> Result<(), QueueBroken> {
        // Each round adds a segment, or is the only one that enters an indirect table.
        loop {
            let desc = match next {
                Ok(desc) => desc,
                Err(index) => table.fetch(rings, index)?,
            };
            if desc.flags() & INDIRECT != 0 {
                let outer = matches!(table, Table::Ring);
                table = Table::enter(rings, indirect && outer, desc)?;
                next = Err(0);
                continue;
            }
            self.add(chain, rings, desc)?;
            if desc.flags() & NEXT == 0 {
                self.end(chain);
                return Ok(());
            }
            next = Err(desc.next());
        }
    }

    /// Adds any descriptor of a buffer.
    fn add(&mut self, chain: &mut Parsed, rings: &mut Rings, desc: Descriptor) -> Result<(), QueueBroken> {
        let (addr, len, direction) = (desc.addr(), desc.len(), desc.flags() & WRITE);
        if len == 0 {
            return Err(QueueBroken::EmptyDescriptor);
        }
        let at = GuestAddress(addr);
        let run = rings.dma.run(at).ok().filter(|run| run.holds(at, len.into()));
        rings.run = run.ok_or(QueueBroken::NotRam { addr, len })?;
        if direction != self.direction {
            if direction != WRITE {
                return Err(QueueBroken::Order);
            }
            self.turn(chain);
        }
        self.total = self.total.checked_add(len).ok_or(QueueBroken::ChainBytes)?;
        let segment = Segment { addr: at, len };
        match chain.segments.get_mut(usize::from(self.count)) {
            Some(place) => *place = segment,
            None if self.count < rings.size() => chain.segments.push(segment),
            None => return Err(QueueBroken::ChainLength { size: rings.size() }),
        }
        self.count += 1;
        Ok(())
    }

    /// From here on the segments are writable.
    #[inline]
    fn turn(&mut self, chain: &mut Parsed) {
        chain.readable = self.count;
        chain.readable_len = self.total;
        self.direction = WRITE;
    }

    #[inline]
    fn end(&mut self, chain: &mut Parsed) {
        if self.direction != WRITE {
            self.turn(chain);
        }
        chain.writable = self.count - chain.readable;
        chain.writable_len = self.total - chain.readable_len;
    }
}
