//! A queue of ours with the foreign one behind it.

use ::virtio_queue::{Queue, QueueT};
use ossature_bus::DeviceError;
use ossature_virtio::{Chain, QueueBroken, VirtQueue};

use super::shadow::Shadow;

/// Chains that move to the foreign queue in one turn.
const BUDGET: usize = 64;

#[derive(Debug)]
pub(super) struct Running {
    ours: VirtQueue,
    pub(super) foreign: Queue,
    pub(super) shadow: Shadow,
    /// For each head, the chain that is with the foreign queue.
    held: Box<[Option<Chain>]>,
    /// How many.
    count: u16,
    /// The heads in the foreign queue's available ring.
    heads: Box<[u16]>,
    /// The queue is to stop: it takes nothing more.
    draining: bool,
    /// The driver may have offered more than what was moved, and does not kick for it.
    owed: bool,
    /// The next of it waits for room.
    blocked: bool,
}

impl Running {
    pub(super) fn new(ours: VirtQueue) -> Result<Self, DeviceError> {
        let size = ours.size();
        let shadow = Shadow::new(ours.index(), size)?;
        Ok(Self {
            foreign: shadow.queue()?,
            held: (0..size).map(|_| None).collect(),
            count: 0,
            heads: vec![0; size.into()].into(),
            draining: false,
            owed: false,
            blocked: false,
            ours,
            shadow,
        })
    }

    pub(super) fn index(&self) -> u16 {
        self.ours.index()
    }

    /// Moves what the driver has offered to the foreign queue, as far as there is room.
    pub(super) fn offer(&mut self) -> Result<(), QueueBroken> {
        (self.owed, self.blocked) = (false, false);
        if self.draining {
            return Ok(());
        }
        for _ in 0..BUDGET {
            let Some(mut chain) = self.ours.pop()? else { return Ok(()) };
            if !self.shadow.has_room_for(&chain) {
                self.ours.unpop(chain);
                self.blocked = true;
                break;
            }
            // It may be held for long.
            chain.shrink();
            let head = chain.head();
            let (size, at) = (self.ours.size(), self.shadow.avail);
            // Neither fails: the head is below the size, and the ring is as large as what can be in flight.
            self.shadow.offer(&chain).map_err(|_| QueueBroken::Rings)?;
            let entry = self.heads.get_mut(usize::from(at % size)).ok_or(QueueBroken::Head { head, size })?;
            let place = self.held.get_mut(usize::from(head)).ok_or(QueueBroken::Head { head, size })?;
            (*entry, *place) = (head, Some(chain));
            self.count += 1;
        }
        self.owed = true;
        Ok(())
    }

    /// Notes that a turn is needed.
    pub(super) fn owe(&mut self) {
        self.owed = true;
    }

    /// Returns true if a turn is needed, and can do something.
    pub(super) fn is_due(&self) -> bool {
        self.owed && !self.draining && (!self.blocked || self.shadow.has_room())
    }

    /// Completes what the foreign queue has used.
    pub(super) fn collect(&mut self) -> Result<(), QueueBroken> {
        // Each round takes a chain that is held, and there are no more than the queue has entries.
        while self.shadow.used != self.foreign.next_used() {
            let (head, len) = self.shadow.take_used().map_err(|_| QueueBroken::Rings)?;
            let held = self.held.get_mut(head as usize).and_then(Option::take);
            let chain = held.ok_or(QueueBroken::NotInFlight { head: head as u16 })?;
            self.count -= 1;
            self.shadow.release(head as u16);
            self.ours.complete(chain, len)?;
        }
        self.ours.flush()
    }

    /// Asks for a kick, unless the queue is to stop or has chains that wait for room. Returns true if more was offered
    /// meanwhile.
    pub(super) fn enable_kicks(&mut self) -> Result<bool, QueueBroken> {
        if self.draining || self.owed { Ok(self.is_due()) } else { self.ours.enable_kicks() }
    }

    /// Chains that the device has not taken from the foreign queue.
    pub(super) fn pending(&self) -> u16 {
        self.shadow.avail.wrapping_sub(self.foreign.next_avail()).min(self.count)
    }

    /// Chains that the device has taken and not used.
    pub(super) fn taken(&self) -> u16 {
        self.count - self.pending()
    }

    pub(super) fn stop(&mut self) {
        self.draining = true;
    }

    /// Our queue, with what the device has not taken given back.
    pub(super) fn into_queue(mut self) -> VirtQueue {
        let size = self.ours.size();
        for back in 1..=self.pending() {
            let at = self.shadow.avail.wrapping_sub(back) % size;
            let head = self.heads.get(usize::from(at)).copied().unwrap_or_default();
            if let Some(chain) = self.held.get_mut(usize::from(head)).and_then(Option::take) {
                self.ours.unpop(chain);
            }
        }
        self.ours
    }
}
