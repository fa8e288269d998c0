//! The split virtqueue as a device's worker uses it (virtio 1.2, 2.7).

mod broken;
mod chain;
mod ring;
mod setup;
mod state;
#[cfg(test)]
mod tests;

use std::mem;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ossature_bus::{Event, Interrupt};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Run};
use virtio_bindings::bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};

pub use broken::QueueBroken;
pub use chain::Chain;
use chain::Parsed;
use ring::Rings;
pub(crate) use setup::check;
pub use setup::{QueueSetup, QueueSetupError};
pub use state::QueueState;

/// How many pieces of storage of long chains a queue keeps beside the one that it uses next.
const LARGE_SPARES: usize = 8;

/// A running queue, owned by exactly one worker.
///
/// A worker pops until there is nothing left, completes what is done, flushes, and asks for a kick; where
/// [`enable_kicks`](Self::enable_kicks) finds that more arrived meanwhile, it pops again. Whatever breaks the ring
/// latches.
#[derive(Debug)]
pub struct VirtQueue {
    index: u16,
    size: u16,
    event_idx: bool,
    indirect: bool,
    rings: Rings,
    /// RAM that is likely to hold the next chain's segments.
    run: Run,
    doorbell: Arc<Event>,
    interrupt: Interrupt,
    /// Index of the next available entry to take.
    next_avail: u16,
    /// Entries from there on that the driver had published when its index was last read, and that the next pops
    /// take. None where a look at something else comes first: the queue is broken, or chains were given back.
    ready: u16,
    /// Index of the next used element to write.
    next_used: u16,
    /// The used index that the driver sees. What was taken and not yet published is
    /// `next_avail - published`: at most `size`.
    published: u16,
    /// For each head, whether the device holds it. Of no head where the queue is broken.
    held: Box<[bool]>,
    /// Chains that were given back with `unpop`, the next to hand out last.
    returned: Vec<Chain>,
    /// Storage of the chain that was completed last, which is all there is where requests go one by one.
    spare: Option<Box<Parsed>>,
    /// Storage of others.
    #[allow(clippy::vec_box)] // the boxes move between here and the chains
    spares: Vec<Box<Parsed>>,
    broken: Option<QueueBroken>,
    /// What it started with.
    state: QueueState,
}

impl VirtQueue {
    /// Its number in the device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Its size in entries, which is also the most descriptors that a chain can have.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// The device's view of guest RAM: as it was when chains were last looked for.
    pub fn dma(&self) -> &Dma {
        &self.rings.dma
    }

    /// Readable after the driver has kicked.
    pub fn doorbell(&self) -> &Event {
        &self.doorbell
    }

    /// Why the queue is broken, if it is.
    pub fn broken(&self) -> Option<QueueBroken> {
        self.broken
    }

    /// Chains that were popped and are not yet visible to the driver as used.
    pub fn in_flight(&self) -> u16 {
        self.next_avail.wrapping_sub(self.published)
    }

    /// The next chain that the driver offers.
    // What nearly every call does comes back in a register; the rest is out of line.
    #[inline]
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueBroken> {
        match self.take() {
            Some(chain) => Ok(Some(chain)),
            None => self.pop_unready(),
        }
    }

    /// Returns true if the next [`pop`](Self::pop) has nothing to take, as far as that can be seen at a glance: for a device
    /// that has chains at hand and would take more.
    #[inline]
    pub(crate) fn is_drained(&self) -> bool {
        self.broken.is_none()
            && self.returned.is_empty()
            && self.rings.avail_index().is_ok_and(|index| index == self.next_avail)
    }

    #[cold]
    #[inline(never)]
    fn pop_unready(&mut self) -> Result<Option<Chain>, QueueBroken> {
        self.intact()?;
        if let Some(chain) = self.returned.pop() {
            return Ok(Some(chain));
        }
        if !self.look()? {
            return Ok(None);
        }
        let chain = self.take();
        self.intact().map(|()| chain)
    }

    /// Gives back the most recently popped chain, untouched, so that the next [`pop`](Self::pop) returns
    /// it. Several go back in the reverse order of their popping.
    pub fn unpop(&mut self, chain: Chain) {
        self.ready = 0;
        self.returned.push(chain);
    }

    /// The chain with this head, which the device held when the queue stopped: it had been popped, and not completed.
    pub fn take_back(&mut self, head: u16) -> Result<Chain, QueueBroken> {
        self.intact()?;
        // No more than were popped.
        let room = self.held.iter().filter(|held| **held).count() < usize::from(self.in_flight());
        let taken = match self.held.get_mut(usize::from(head)) {
            None => Err(QueueBroken::Head { head, size: self.size }),
            Some(true) => Err(QueueBroken::HeadInFlight { head }),
            Some(held) => {
                *held = room;
                if room { Ok(()) } else { Err(QueueBroken::NotInFlight { head }) }
            }
        };
        self.latch(taken)?;
        let parsed = self.another();
        self.walk(parsed, head).ok_or_else(|| self.broken.unwrap_or(QueueBroken::Rings))
    }

    /// Notes the chain as used, with `written` bytes from the start of its writable part (no more than it
    /// has). The driver does not see it before [`flush`](Self::flush).
    #[inline(always)] // all that is in here is what every request needs
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), QueueBroken> {
        let head = chain.head();
        // Unless the device mixes its queues up, the chain is one that this queue holds.
        if !self.held.get_mut(usize::from(head)).is_some_and(mem::take) {
            return Err(self.not_held(head));
        }
        let done = self.rings.set_used_element(self.next_used, head, written.min(chain.writable_len()));
        self.latch(done)?;
        self.next_used = self.next_used.wrapping_add(1);
        if self.spare.is_none() {
            self.spare = Some(chain.0);
        } else {
            self.keep(chain.0);
        }
        Ok(())
    }

    #[inline(never)]
    fn keep(&mut self, parsed: Box<Parsed>) {
        // As many as there are heads may each have had as many segments.
        if !parsed.is_large() || self.spares.len() < LARGE_SPARES {
            self.spares.push(parsed);
        }
    }

    #[cold]
    fn not_held(&mut self, head: u16) -> QueueBroken {
        self.broken.unwrap_or_else(|| self.fail(QueueBroken::NotInFlight { head }))
    }

    /// Publishes all that was completed since the last flush with one index store, and raises at most one
    /// interrupt (2.7.7).
    pub fn flush(&mut self) -> Result<(), QueueBroken> {
        self.intact()?;
        if self.next_used == self.published {
            return Ok(());
        }
        let wanted = self.publish();
        if self.latch(wanted)? {
            // Nobody is left to tell of a line that is gone; an event of ours cannot fail.
            let _ = self.interrupt.signal();
        }
        Ok(())
    }

    /// Asks the driver for a kick (2.7.10). Returns true if more chains arrived meanwhile: then go on popping.
    /// Chains that were given back with [`unpop`](Self::unpop) do not count.
    pub fn enable_kicks(&mut self) -> Result<bool, QueueBroken> {
        self.intact()?;
        let asked = if self.event_idx {
            self.rings.set_avail_event(self.next_avail)
        } else {
            self.rings.set_used_flags(0)
        };
        self.latch(asked)?;
        // The driver stores its index and then reads ours; we stored ours and now read its index. Without
        // the fence both could read the old value, and nobody would kick.
        fence(Ordering::SeqCst);
        self.look()
    }

    /// Tells the driver that no kicks are needed while we are polling. With EVENT_IDX there is nothing to
    /// say: it kicks once, at the index that [`enable_kicks`](Self::enable_kicks) asked for.
    pub fn disable_kicks(&mut self) -> Result<(), QueueBroken> {
        self.intact()?;
        let told =
            if self.event_idx { Ok(()) } else { self.rings.set_used_flags(VRING_USED_F_NO_NOTIFY as u16) };
        self.latch(told)
    }

    /// Stops the queue. All that was completed is published, and chains that were given back with
    /// [`unpop`](Self::unpop) count as not taken. A broken queue is not ready.
    pub fn into_state(mut self) -> QueueState {
        // A queue that breaks here is broken.
        let flushed = self.flush();
        if flushed.is_err() {
            return self.state.lost();
        }
        // No more than were popped, so that there are fewer than 2^16.
        let returned = self.returned.len() as u16;
        let next_avail = self.next_avail.wrapping_sub(returned);
        QueueState { ready: true, next_avail, next_used: self.next_used, ..self.state }
    }

    fn intact(&self) -> Result<(), QueueBroken> {
        // Not `map_or`, which copies what is nearly always nothing.
        if let Some(why) = &self.broken { Err(*why) } else { Ok(()) }
    }

    fn latch<T>(&mut self, result: Result<T, QueueBroken>) -> Result<T, QueueBroken> {
        result.map_err(|why| self.fail(why))
    }

    #[cold]
    fn fail(&mut self, why: QueueBroken) -> QueueBroken {
        self.ready = 0;
        self.held = Box::default();
        *self.broken.insert(why)
    }

    /// Reads the driver's index. Returns true if there is something to take.
    fn look(&mut self) -> Result<bool, QueueBroken> {
        if self.rings.dma.refresh() {
            let followed = self.follow();
            self.latch(followed)?;
        }
        let index = self.rings.avail_index();
        let index = self.latch(index)?;
        let in_flight = self.in_flight();
        let ready = index.wrapping_sub(self.next_avail);
        // The driver owns what the device does not hold: the index can be ahead by that much.
        if ready > self.size.wrapping_sub(in_flight) {
            let (next, size) = (self.next_avail, self.size);
            return self.latch(Err(QueueBroken::AvailIndex { index, next, in_flight, size }));
        }
        self.ready = if self.returned.is_empty() { ready } else { 0 };
        Ok(ready != 0)
    }

    /// RAM has changed: looks the rings up again, which may no longer be RAM.
    #[cold]
    fn follow(&mut self) -> Result<(), QueueBroken> {
        let QueueState { size, desc, avail, used, .. } = self.state;
        let dma = self.rings.dma.clone();
        self.run = dma.run(GuestAddress(desc)).map_err(|_| QueueBroken::Rings)?;
        self.rings = Rings::new(dma, size, desc, avail, used).ok_or(QueueBroken::Rings)?;
        Ok(())
    }

    /// The next chain of those that are ready. None where the ring breaks, which latches.
    #[inline(always)] // each worker's loop has its own
    fn take(&mut self) -> Option<Chain> {
        self.ready = self.ready.checked_sub(1)?;
        let head = match self.take_head() {
            Ok(head) => head,
            Err(why) => {
                self.fail(why);
                return None;
            }
        };
        let mut parsed = match self.spare.take() {
            Some(parsed) => parsed,
            None => self.another(),
        };
        match parsed.walk_plain(&self.rings, self.run, self.indirect, head) {
            Some(()) => Some(Chain(parsed)),
            None => self.walk(parsed, head),
        }
    }

    /// The next head, which the device holds from now on.
    #[inline(always)]
    fn take_head(&mut self) -> Result<u16, QueueBroken> {
        let head = self.rings.avail_entry(self.next_avail)?;
        let Some(held) = self.held.get_mut(usize::from(head)) else {
            return Err(QueueBroken::Head { head, size: self.size });
        };
        if mem::replace(held, true) {
            return Err(QueueBroken::HeadInFlight { head });
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    #[inline(never)]
    fn another(&mut self) -> Box<Parsed> {
        self.spares.pop().unwrap_or_default()
    }

    /// The chain from `head` on, of whatever kind.
    #[cold]
    #[inline(never)]
    fn walk(&mut self, mut parsed: Box<Parsed>, head: u16) -> Option<Chain> {
        let walked = parsed.walk(&self.rings, &mut self.run, self.indirect, head);
        self.latch(walked).ok().map(|()| Chain(parsed))
    }

    /// Publishes the used index. Returns true if the driver wants an interrupt for what is new.
    fn publish(&mut self) -> Result<bool, QueueBroken> {
        let (old, new) = (self.published, self.next_used);
        self.rings.set_used_index(new)?;
        self.published = new;
        // As in `enable_kicks`, with the roles exchanged.
        fence(Ordering::SeqCst);
        if self.event_idx {
            // Whether the event's index is among those published just now.
            let passed = new.wrapping_sub(self.rings.used_event()?).wrapping_sub(1);
            Ok(passed < new.wrapping_sub(old))
        } else {
            Ok(self.rings.avail_flags()? & VRING_AVAIL_F_NO_INTERRUPT as u16 == 0)
        }
    }
}
