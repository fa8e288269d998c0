//! Descriptor chains: one walk that reads each descriptor once and bounds everything.

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Run, Segment, Window};
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
    readable: u16,
    count: u16,
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
        self.0.segments.get(..self.0.readable.into()).unwrap_or_default()
    }

    /// Where the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.0.segments.get(self.0.readable.into()..self.0.count.into()).unwrap_or_default()
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

impl Parsed {
    /// Walks the chain from `head`, below the queue's size, into an indirect table if `indirect` allows one.
    #[inline]
    pub(super) fn walk(&mut self, rings: &mut Rings, indirect: bool, head: u16) -> Result<(), QueueBroken> {
        let size = rings.size();
        let fetch = |desc: &Window, at| {
            Descriptor::fetch(desc, 0, at).ok_or(QueueBroken::Next { next: at, len: size })
        };
        let Rings { desc, dma, run, .. } = rings;
        let mut walk = Walk::default();
        let segments = &mut self.segments;
        if let Some(table) = walk.follow(Room { dma, run, segments, size }, head, |at| fetch(desc, at))? {
            if !indirect {
                return Err(QueueBroken::Indirect);
            }
            walk = walk.indirect(Room { dma, run, segments, size }, table)?;
        }
        if walk.direction == 0 {
            walk.readable_ends();
        }
        self.head = head;
        self.count = walk.count;
        self.readable = walk.readable;
        self.readable_len = walk.readable_len;
        self.writable_len = walk.total - walk.readable_len;
        Ok(())
    }
}

/// What a walk works with.
struct Room<'a> {
    dma: &'a Dma,
    /// RAM that held the segment before.
    run: &'a mut Run,
    segments: &'a mut Vec<Segment>,
    size: u16,
}

/// A chain as far as it was walked. Small enough for registers.
#[derive(Clone, Copy, Default)]
struct Walk {
    count: u16,
    /// The last segment's write flag.
    direction: u16,
    /// Bytes in all segments.
    total: u32,
    /// How many segments were readable, and their bytes, once one was writable.
    readable: u16,
    readable_len: u32,
}

impl Walk {
    /// Follows a table from `at` to the end, or to a reference to an indirect table; `fetch` knows how long the
    /// table is. Each round adds a segment, and there are at most as many as the queue has entries: that ends
    /// any loop.
    #[inline(always)] // into both callers, each a loop of its own
    fn follow(
        &mut self,
        room: Room<'_>,
        mut at: u16,
        fetch: impl Fn(u16) -> Result<Descriptor, QueueBroken>,
    ) -> Result<Option<Descriptor>, QueueBroken> {
        loop {
            let desc = fetch(at)?;
            let (addr, len, flags) = (desc.addr(), desc.len(), desc.flags());
            let direction = flags & (WRITE | INDIRECT);
            if direction != self.direction {
                if direction & INDIRECT != 0 {
                    return Ok(Some(desc));
                }
                if direction != WRITE {
                    return Err(QueueBroken::Order);
                }
                self.readable_ends();
                self.direction = WRITE;
            }
            if !room.run.holds(GuestAddress(addr), len.into()) {
                *room.run = find(room.dma, addr, len)?;
            }
            self.total = self.total.checked_add(len).ok_or(QueueBroken::ChainBytes)?;
            let segment = Segment { addr: GuestAddress(addr), len };
            match room.segments.get_mut(usize::from(self.count)) {
                Some(place) => *place = segment,
                None => append(room.segments, segment, room.size)?,
            }
            self.count += 1;
            if flags & NEXT == 0 {
                return Ok(None);
            }
            at = desc.next();
        }
    }

    /// Goes on in the table that `desc` refers to. Its write flag means nothing (2.7.5.3.2).
    #[inline(never)]
    fn indirect(mut self, room: Room<'_>, desc: Descriptor) -> Result<Self, QueueBroken> {
        if desc.flags() & NEXT != 0 {
            return Err(QueueBroken::Indirect);
        }
        let (addr, len) = (desc.addr(), desc.len());
        let entries = match u16::try_from(len / DESCRIPTOR) {
            Ok(entries) if len % DESCRIPTOR == 0 && (1..=room.size).contains(&entries) => entries,
            _ => return Err(QueueBroken::IndirectTable { len }),
        };
        let dma = room.dma;
        let not_ram = QueueBroken::NotRam { addr, len };
        dma.check(GuestAddress(addr), len.into()).map_err(|_| not_ram)?;
        let region = dma.region(GuestAddress(addr)).ok_or(not_ram)?;
        let start = (addr - region.guest_address()) as usize;
        let inner = self.follow(room, 0, |at| {
            if at >= entries {
                return Err(QueueBroken::Next { next: at, len: entries });
            }
            Descriptor::fetch(region, start, at).map_or_else(|| across(dma, addr, at).ok_or(not_ram), Ok)
        })?;
        if inner.is_some() { Err(QueueBroken::Indirect) } else { Ok(self) }
    }

    fn readable_ends(&mut self) {
        self.readable = self.count;
        self.readable_len = self.total;
    }
}

/// The RAM that holds a segment.
#[cold]
fn find(dma: &Dma, addr: u64, len: u32) -> Result<Run, QueueBroken> {
    if len == 0 {
        return Err(QueueBroken::EmptyDescriptor);
    }
    let run = dma.run(GuestAddress(addr)).ok().filter(|run| run.holds(GuestAddress(addr), len.into()));
    run.ok_or(QueueBroken::NotRam { addr, len })
}

/// Makes room for a chain that is longer than any before in the same storage.
#[cold]
fn append(segments: &mut Vec<Segment>, segment: Segment, size: u16) -> Result<(), QueueBroken> {
    if segments.len() >= usize::from(size) {
        return Err(QueueBroken::ChainLength { size });
    }
    segments.push(segment);
    Ok(())
}

/// A descriptor of a table at `table` that goes on in another region.
#[cold]
fn across(dma: &Dma, table: u64, index: u16) -> Option<Descriptor> {
    let at = GuestAddress(table + u64::from(DESCRIPTOR) * u64::from(index));
    dma.read_obj(at).map(Descriptor::new).ok()
}
