//! The loop's epoll(7) instance with the event that ends a wait.
//!
//! `unsafe` is here for one reason: `vmm-sys-util` owns the descriptor of its `Epoll` and lends it as a number only.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::handler::{Interest, Source, WatchError};
use super::table::NOBODY;
use crate::Event;

/// The descriptors that one wait looks at. The others come with the next one.
const BATCH: usize = 32;

/// An event's data are its handler's id and, in so many low bits, the token. A guest that restarts a device for ever
/// does not use up the other 48.
const TOKEN_BITS: u32 = u16::BITS;

pub(super) struct Poller {
    epoll: Epoll,
    /// Edge-triggered, so that nobody needs to take the count.
    wake: Event,
}

/// What a wait found.
pub(super) struct Ready {
    events: Vec<EpollEvent>,
    count: usize,
}

impl Ready {
    pub(super) fn new() -> Self {
        Self { events: vec![EpollEvent::default(); BATCH], count: 0 }
    }

    /// Returns true if there may be more than it has room for.
    pub(super) fn is_full(&self) -> bool {
        self.count == self.events.len()
    }

    /// The handlers and tokens that were woken.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u16)> {
        let events = self.events.iter().take(self.count);
        events.map(|event| (event.data() >> TOKEN_BITS, event.data() as u16)).filter(|(id, _)| *id != NOBODY)
    }
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        let (epoll, wake) = (Epoll::new()?, Event::new()?);
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, NOBODY << TOKEN_BITS);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        Ok(Self { epoll, wake })
    }

    /// Ends the wait that is under way, or the next one.
    pub(super) fn wake(&self) {
        // An eventfd whose count is full wakes as well.
        let _ = self.wake.signal();
    }

    /// Waits for a descriptor, or only looks.
    pub(super) fn wait(&self, block: bool, ready: &mut Ready) -> io::Result<()> {
        ready.count = 0;
        ready.count = match self.epoll.wait(if block { -1 } else { 0 }, &mut ready.events) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            count => count?,
        };
        Ok(())
    }

    /// Watches a descriptor for a handler; `again` if it is watched for the handler already.
    pub(super) fn watch(&self, id: u64, source: Source, again: bool) -> Result<(), WatchError> {
        let interest = match source.interest {
            Interest::Readable => EventSet::IN,
            Interest::Writable => EventSet::OUT,
            Interest::Both => EventSet::IN | EventSet::OUT,
        };
        let data = id << TOKEN_BITS | u64::from(source.token);
        let event = EpollEvent::new(interest | EventSet::EDGE_TRIGGERED, data);
        let operation = if again { ControlOperation::Modify } else { ControlOperation::Add };
        let failed = |error| WatchError { fd: source.fd, source: error };
        self.epoll.ctl(operation, source.fd, event).map_err(failed)
    }

    pub(super) fn forget(&self, fd: RawFd) {
        // It may have been closed before.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: `epoll` owns the descriptor and closes it only when it is dropped, after the borrow of `self`.
        unsafe { BorrowedFd::borrow_raw(self.epoll.as_raw_fd()) }
    }
}
