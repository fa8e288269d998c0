//! The split virtqueue as a device's worker uses it.

use ossature_bus::Event;
use ossature_memory::{Dma, Segment};

/// The driver broke the ring: nothing that it holds can be trusted any more. Latches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueBroken {
    /// (variants to come)
    #[error("the ring is broken")]
    Ring,
}

/// One descriptor chain, parsed once and bounded, as plain data in host memory. Consumed by
/// [`VirtQueue::complete`].
#[derive(Debug)]
#[must_use]
pub struct Chain {
    head: u16,
    segments: Vec<Segment>,
    readable: usize,
}

impl Chain {
    /// The head's index in the descriptor table.
    pub fn head(&self) -> u16 {
        self.head
    }
    /// What the driver wrote for the device, in order.
    pub fn readable(&self) -> &[Segment] {
        self.segments.get(..self.readable).unwrap_or_default()
    }
    /// Where the device may write, in order.
    pub fn writable(&self) -> &[Segment] {
        self.segments.get(self.readable..).unwrap_or_default()
    }
}

/// A running queue, owned by exactly one worker.
#[derive(Debug)]
pub struct VirtQueue {}

#[allow(clippy::todo, missing_docs)]
impl VirtQueue {
    pub fn index(&self) -> u16 {
        todo!()
    }
    pub fn size(&self) -> u16 {
        todo!()
    }
    pub fn dma(&self) -> &Dma {
        todo!()
    }
    /// Readable after the driver has kicked.
    pub fn doorbell(&self) -> &Event {
        todo!()
    }
    /// The next chain that the driver offers.
    pub fn pop(&mut self) -> Result<Option<Chain>, QueueBroken> {
        todo!()
    }
    /// Gives back the most recently popped chain, untouched, so that the next `pop` returns it.
    pub fn unpop(&mut self, chain: Chain) {
        let _ = chain;
        todo!()
    }
    /// Notes the chain as used; `written` bytes from the start of its writable part. Invisible until `flush`.
    pub fn complete(&mut self, chain: Chain, written: u32) -> Result<(), QueueBroken> {
        let _ = (chain, written);
        todo!()
    }
    /// Publishes all that was completed since the last flush with one index store, and raises at most one interrupt.
    pub fn flush(&mut self) -> Result<(), QueueBroken> {
        todo!()
    }
    /// Asks the driver for a kick; true where more chains arrived meanwhile (then go on popping).
    pub fn park(&mut self) -> Result<bool, QueueBroken> {
        todo!()
    }
    /// Tells the driver that no kicks are needed while we are polling.
    pub fn unpark(&mut self) -> Result<(), QueueBroken> {
        todo!()
    }
}
