//! Descriptor chains: a walk reads each descriptor once and bounds everything.

use ossature_memory::vm_memory::{ByteValued, GuestAddress};
use ossature_memory::{Dma, Run, Segment, Segments, View};
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
    /// How many of `segments` there are, the first of which are readable: the rest is room.
    count: u16,
    readable: u16,
    readable_len: u32,
    writable_len: u32,
    /// Address of the last byte.
    last: u64,
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

    /// Both.
    #[inline]
    pub(crate) fn parts(&self) -> (&[Segment], &[Segment]) {
        let Parsed { segments, count, readable, .. } = &*self.0;
        let all = segments.get(..usize::from(*count));
        all.and_then(|all| all.split_at_checked(usize::from(*readable))).unwrap_or_else(nothing)
    }

    /// The value at the start of [`readable`](Self::readable), read once; `None` where that is shorter or no RAM.
    #[inline]
    pub(crate) fn header<T: ByteValued>(&self, mem: &Dma) -> Option<T> {
        // The writable segments follow in the list: the length says where the readable ones end.
        let readable = Segments::first_bytes(&self.0.segments, self.0.readable_len.into());
        mem.gather_obj(readable).ok().flatten()
    }

    /// Where the last byte of [`writable`](Self::writable) is, if it has any.
    #[inline]
    pub(crate) fn last_byte(&self) -> Option<GuestAddress> {
        // The readable part comes first.
        (self.0.writable_len != 0).then_some(GuestAddress(self.0.last))
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

    /// Frees memory that a longer chain has needed, for a device that holds many chains for long.
    pub fn shrink(&mut self) {
        let Parsed { segments, count, .. } = &mut *self.0;
        let count = usize::from(*count);
        if segments.capacity() > ROOM.max(2 * count) {
            segments.truncate(count);
            segments.shrink_to_fit();
        }
    }
}

/// Segments for which storage may have room without being needed.
const ROOM: usize = 16;

/// What a chain whose counts were wrong would have: they never are.
#[cold]
fn nothing<'a>() -> (&'a [Segment], &'a [Segment]) {
    Default::default()
}

impl Parsed {
    /// Returns true if it has room for many segments.
    pub(super) fn is_large(&self) -> bool {
        self.segments.capacity() > ROOM
    }

    /// Walks the chain from `head`, below the queue's size, into an indirect table if `indirect` allows one, as nearly
    /// all chains are: buffers in `run`, for which there are places. `None` where it is of another kind, or wrong: then
    /// nothing of what was read counts, and [`walk`](Self::walk) begins anew.
    ///
    /// The loop calls nothing, so that it runs in registers.
    #[inline(always)] // into the worker's own loop
    pub(super) fn walk_plain(&mut self, rings: &Rings, run: Run, indirect: bool, head: u16) -> Option<()> {
        let mut table = rings.table()?;
        let mut desc = Descriptor::fetch(table, head)?;
        if desc.flags() & INDIRECT != 0 {
            (_, table) = Table::enter(rings, indirect, desc).ok()?;
            desc = Descriptor::fetch(table, 0)?;
        }
        let (mut count, mut direction, mut total) = (0, 0, 0);
        // Each round fills a place, and there are at most as many as the queue has entries.
        for place in self.segments.iter_mut() {
            let (addr, len, flags) = (GuestAddress(desc.addr()), desc.len(), desc.flags());
            if flags & (WRITE | INDIRECT) != direction {
                if flags & (WRITE | INDIRECT) != WRITE {
                    return None;
                }
                (self.readable, self.readable_len, direction) = (count, total as u32, WRITE);
            }
            if !run.holds(addr, len.into()) {
                return None;
            }
            let segment = Segment { addr, len };
            *place = segment;
            count += 1;
            total += u64::from(len);
            if flags & NEXT == 0 {
                if direction != WRITE {
                    (self.readable, self.readable_len) = (count, total as u32);
                }
                return self.end(head, count, total, segment).ok();
            }
            desc = Descriptor::fetch(table, desc.next())?;
        }
        None
    }

    /// Walks any chain from `head`, below the queue's size, into an indirect table if `indirect` allows one. `run` becomes
    /// the RAM that holds its last segment.
    #[cold]
    pub(super) fn walk(
        &mut self,
        rings: &Rings,
        run: &mut Run,
        mut indirect: bool,
        head: u16,
    ) -> Result<(), QueueBroken> {
        let (mut walk, mut table, mut next) = (Walk::default(), Table::Ring, head);
        // Each round adds a segment, or is the only one that enters an indirect table.
        loop {
            let desc = table.fetch(rings, next)?;
            if desc.flags() & INDIRECT != 0 {
                (table, _) = Table::enter(rings, indirect, desc)?;
                (indirect, next) = (false, 0);
                continue;
            }
            let last;
            (last, *run) = walk.add(self, rings, desc)?;
            if desc.flags() & NEXT == 0 {
                let (readable, readable_len) = walk.readable.unwrap_or((walk.count, walk.total));
                (self.readable, self.readable_len) = (readable, readable_len as u32);
                return self.end(head, walk.count, walk.total, last);
            }
            next = desc.next();
        }
    }

    /// Notes what a walk has found beside the readable part: how many segments, their bytes, and the last segment.
    #[inline(always)]
    fn end(&mut self, head: u16, count: u16, total: u64, last: Segment) -> Result<(), QueueBroken> {
        let Ok(total) = u32::try_from(total) else { return Err(QueueBroken::ChainBytes) };
        (self.head, self.count) = (head, count);
        // In RAM, which does not wrap, and not empty.
        self.last = last.addr.0.wrapping_add(last.len.into()).wrapping_sub(1);
        self.writable_len = total - self.readable_len;
        Ok(())
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
    /// The table that `desc` refers to, if `allowed`, and a view of it: of nothing where it is not in one region,
    /// which leaves it to the rest of the walk. The write flag means nothing (2.7.5.3.2).
    #[inline]
    fn enter<'a>(rings: &'a Rings, allowed: bool, desc: Descriptor) -> Result<(Self, View<'a>), QueueBroken> {
        if !allowed || desc.flags() & NEXT != 0 {
            return Err(QueueBroken::Indirect);
        }
        let (addr, len) = (desc.addr(), desc.len());
        if len % DESCRIPTOR != 0 || (len as usize).wrapping_sub(1) >= rings.table_len() {
            return Err(QueueBroken::IndirectTable { len });
        }
        let at = GuestAddress(addr);
        let table = Self::Indirect(at, (len / DESCRIPTOR) as u16);
        match rings.dma.view(at, len as usize) {
            Some(view) => Ok((table, view)),
            None if rings.dma.check(at, len.into()).is_ok() => Ok((table, View::default())),
            None => Err(QueueBroken::NotRam { addr, len }),
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
    /// Bytes in all of them: a queue has too few entries for an overflow.
    total: u64,
    /// The same of the readable part, once it has ended.
    readable: Option<(u16, u64)>,
}

impl Walk {
    /// Adds any descriptor of a buffer; returns its segment, and the RAM that it lies in.
    fn add(
        &mut self,
        chain: &mut Parsed,
        rings: &Rings,
        desc: Descriptor,
    ) -> Result<(Segment, Run), QueueBroken> {
        let (addr, len, writable) = (desc.addr(), desc.len(), desc.flags() & WRITE != 0);
        if len == 0 {
            return Err(QueueBroken::EmptyDescriptor);
        }
        let at = GuestAddress(addr);
        let run = rings.dma.run(at).ok().filter(|run| run.holds(at, len.into()));
        let run = run.ok_or(QueueBroken::NotRam { addr, len })?;
        if writable {
            self.readable = self.readable.or(Some((self.count, self.total)));
        } else if self.readable.is_some() {
            return Err(QueueBroken::Order);
        }
        let size = rings.size();
        let segment = Segment { addr: at, len };
        match chain.segments.get_mut(usize::from(self.count)) {
            Some(place) => *place = segment,
            None if self.count < size => chain.segments.push(segment),
            None => return Err(QueueBroken::ChainLength { size }),
        }
        self.count += 1;
        self.total += u64::from(len);
        Ok((segment, run))
    }
}
