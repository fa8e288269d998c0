//! Descriptor chains: one walk that reads each descriptor once and bounds everything.

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Run, Segment, View};
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

/// What a chain whose counts were wrong would have: they never are.
#[cold]
fn nothing<'a>() -> (&'a [Segment], &'a [Segment]) {
    Default::default()
}

impl Parsed {
    /// Walks the chain from `head`, below the queue's size, into an indirect table if `indirect` allows one. `run`
    /// is RAM that is likely to hold its segments.
    ///
    /// The loop takes descriptors as nearly all are: buffers in the same RAM as the last one, for which there
    /// is a place. It calls nothing, so that it runs in registers, and leaves whatever is special to
    /// [`Walk::go_on`].
    #[inline]
    pub(super) fn walk(
        &mut self,
        rings: &Rings,
        run: &mut Run,
        indirect: bool,
        head: u16,
    ) -> Result<(), QueueBroken> {
        self.head = head;
        let (mut place, mut table) = (Table::Ring, rings.table().unwrap_or_default());
        let mut first = Descriptor::fetch(table, head).ok_or(head);
        if let Ok(desc) = first {
            if desc.flags() & INDIRECT != 0 {
                (place, table) = Table::enter(rings, indirect, desc)?;
                first = Descriptor::fetch(table, 0).ok_or(0);
            }
        }
        let fetch = |index| Descriptor::fetch(table, index).ok_or(index);
        let Self { segments, readable, readable_len, .. } = self;
        let places = segments.as_mut_slice();
        let (mut count, mut direction, mut total) = (0, 0, 0);
        let next = match first {
            Err(index) => Err(index),
            // Each round fills a place, and there are at most as many as the queue has entries.
            Ok(mut desc) => loop {
                let (addr, len, flags) = (GuestAddress(desc.addr()), desc.len(), desc.flags());
                let Some(segment) = places.get_mut(count) else { break Ok(desc) };
                if flags & (WRITE | INDIRECT) != direction {
                    if flags & (WRITE | INDIRECT) != WRITE {
                        break Ok(desc);
                    }
                    (*readable, *readable_len, direction) = (count as u16, total as u32, WRITE);
                }
                if !run.holds(addr, len.into()) {
                    break Ok(desc);
                }
                *segment = Segment { addr, len };
                count += 1;
                total += u64::from(len);
                if flags & NEXT == 0 {
                    return Walk { count, direction, total }.end(self);
                }
                match fetch(desc.next()) {
                    Ok(next) => desc = next,
                    Err(index) => break Err(index),
                }
            },
        };
        let walk = Walk { count, direction, total };
        walk.go_on(self, rings, run, indirect && matches!(place, Table::Ring), place, next)
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
        if len % DESCRIPTOR != 0 || len.wrapping_sub(1) >= DESCRIPTOR * u32::from(rings.size()) {
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
    count: usize,
    /// The last one's write flag.
    direction: u16,
    /// Bytes in all of them: a queue has too few entries for an overflow.
    total: u64,
}

impl Walk {
    /// Goes on to the end from any descriptor of `table`, or from the index of one that has yet to be read.
    #[cold]
    fn go_on(
        mut self,
        chain: &mut Parsed,
        rings: &Rings,
        run: &mut Run,
        mut indirect: bool,
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
                (table, _) = Table::enter(rings, indirect, desc)?;
                indirect = false;
                next = Err(0);
                continue;
            }
            *run = self.add(chain, rings, desc)?;
            if desc.flags() & NEXT == 0 {
                return self.end(chain);
            }
            next = Err(desc.next());
        }
    }

    /// Adds any descriptor of a buffer; returns the RAM that it lies in.
    fn add(&mut self, chain: &mut Parsed, rings: &Rings, desc: Descriptor) -> Result<Run, QueueBroken> {
        let (addr, len, direction) = (desc.addr(), desc.len(), desc.flags() & WRITE);
        if len == 0 {
            return Err(QueueBroken::EmptyDescriptor);
        }
        let at = GuestAddress(addr);
        let run = rings.dma.run(at).ok().filter(|run| run.holds(at, len.into()));
        let run = run.ok_or(QueueBroken::NotRam { addr, len })?;
        if direction != self.direction {
            if direction != WRITE {
                return Err(QueueBroken::Order);
            }
            self.turn(chain);
        }
        let size = rings.size();
        let segment = Segment { addr: at, len };
        match chain.segments.get_mut(self.count) {
            Some(place) => *place = segment,
            None if self.count < usize::from(size) => chain.segments.push(segment),
            None => return Err(QueueBroken::ChainLength { size }),
        }
        self.count += 1;
        self.total += u64::from(len);
        Ok(run)
    }

    /// From here on the segments are writable.
    #[inline]
    fn turn(&mut self, chain: &mut Parsed) {
        chain.readable = self.count as u16;
        chain.readable_len = self.total as u32;
        self.direction = WRITE;
    }

    #[inline]
    fn end(mut self, chain: &mut Parsed) -> Result<(), QueueBroken> {
        let Ok(total) = u32::try_from(self.total) else { return Err(QueueBroken::ChainBytes) };
        if self.direction != WRITE {
            self.turn(chain);
        }
        chain.count = self.count as u16;
        chain.writable_len = total - chain.readable_len;
        Ok(())
    }
}
