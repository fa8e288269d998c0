//! What carries a queue's requests out: the contract.

use std::os::fd::BorrowedFd;

use ossature_bus::EventSink;
use ossature_memory::{Dma, DmaIoError, Segments};

/// What a request asks of the disk. All of it lies within [`Disk::capacity`](crate::Disk::capacity); offsets and lengths
/// are multiples of 512 bytes.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Operation<'a> {
    /// Fills guest memory from the disk.
    Read {
        /// Where the bytes go.
        to: Segments<'a>,
        /// Where they are on the disk.
        offset: u64,
    },
    /// Writes guest memory to the disk.
    Write {
        /// Where the bytes are.
        from: Segments<'a>,
        /// Where they go on the disk.
        offset: u64,
        /// Not finished before it would survive a power cut: the disk writes through.
        durable: bool,
    },
    /// Finished once all writes that finished before it was submitted survive a power cut.
    Flush,
    /// The contents of the range do not matter any more.
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
    },
    /// The range reads as zeros from now on.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        len: u64,
        /// Its space may be given back to the host.
        unmap: bool,
        /// As of a write.
        durable: bool,
    },
}

/// How a request ended.
#[derive(Debug)]
#[non_exhaustive]
pub struct Finished {
    /// Bytes that were transferred from the start of the request without a gap, each exactly once. All of them if it
    /// succeeded; 0 for what transfers none.
    pub moved: u64,
    /// Whether it succeeded.
    pub result: Result<(), DmaIoError>,
}

impl Finished {
    /// One that transferred `moved` bytes and ended so.
    #[inline]
    pub fn new(moved: u64, result: Result<(), DmaIoError>) -> Self {
        Self { moved, result }
    }
}

/// What became of a request that was submitted.
#[derive(Debug)]
#[must_use]
pub enum Submitted {
    /// It is finished already, and is not reaped.
    Finished(Finished),
    /// It is in flight.
    Pending,
}

/// A request that was in flight and is finished.
#[derive(Debug)]
#[non_exhaustive]
pub struct Completion {
    /// What the caller named it.
    pub token: u64,
    /// How it ended.
    pub finished: Finished,
}

impl Completion {
    /// The end of the request `token`.
    pub fn new(token: u64, finished: Finished) -> Self {
        Self { token, finished }
    }
}

/// What a queue asks of its engine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EngineSetup {
    /// How many requests are in flight at most.
    pub depth: u16,
    /// What the VMM should know, such as that the engine had to fall back to slower means.
    pub events: EventSink,
}

impl EngineSetup {
    /// For `depth` requests in flight.
    pub fn new(depth: u16, events: EventSink) -> Self {
        Self { depth, events }
    }
}

/// Carries requests out for one queue. Used on one thread at a time.
///
/// Requests finish in any order: one that has to come after another is submitted when that is finished. An engine
/// transfers all of a request or says how far it came; it goes on after short transfers, and makes interrupted system
/// calls again. Guest memory that it works with stays mapped until the request is finished. Dropping an engine waits
/// for what is in flight.
pub trait Engine: Send {
    /// Takes a request. It works with the guest memory of `mem` as it is now; nothing else is borrowed after the call.
    /// `token` comes back with the completion. No more than [`EngineSetup::depth`] may be in flight.
    fn submit(&mut self, mem: &Dma, token: u64, operation: Operation<'_>) -> Submitted;
    /// Starts what was submitted since the last call, if that has not begun by itself. Called once for a batch.
    fn start(&mut self);
    /// The next request that was in flight and is finished.
    fn reap(&mut self) -> Option<Completion>;
    /// Requests in flight that were not reaped.
    fn in_flight(&self) -> usize;
    /// Becomes readable when something may be there to reap, and is read by [`reap`](Self::reap) when that is needed: to
    /// be watched edge-triggered. `None` if nothing is ever in flight. Constant.
    fn fd(&self) -> Option<BorrowedFd<'_>>;
}

impl<E: Engine + ?Sized> Engine for Box<E> {
    fn submit(&mut self, mem: &Dma, token: u64, operation: Operation<'_>) -> Submitted {
        (**self).submit(mem, token, operation)
    }

    fn start(&mut self) {
        (**self).start();
    }

    fn reap(&mut self) -> Option<Completion> {
        (**self).reap()
    }

    fn in_flight(&self) -> usize {
        (**self).in_flight()
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        (**self).fd()
    }
}
