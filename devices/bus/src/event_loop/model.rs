//! A [`Poller`] for loom's models: the wake-up event alone, without a kernel.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use super::handler::{Source, WatchError};
use crate::sync::{Condvar, Mutex, lock};

pub(super) struct Poller {
    /// The edge that a wait takes.
    edge: Mutex<bool>,
    changed: Condvar,
}

pub(super) struct Ready;

impl Ready {
    pub(super) fn new() -> Self {
        Self
    }

    pub(super) fn is_full(&self) -> bool {
        false
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u16)> {
        std::iter::empty()
    }
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { edge: Mutex::new(false), changed: Condvar::new() })
    }

    pub(super) fn wake(&self) {
        *lock(&self.edge) = true;
        self.changed.notify_all();
    }

    pub(super) fn wait(&self, block: bool, _: &mut Ready) -> io::Result<()> {
        if block {
            self.wait_readable();
        }
        *lock(&self.edge) = false;
        Ok(())
    }

    /// What a foreign loop does with the loop's descriptor.
    pub(super) fn wait_readable(&self) {
        let mut edge = lock(&self.edge);
        while !*edge {
            edge = self.changed.wait(edge).unwrap();
        }
    }

    pub(super) fn watch(&self, _: u64, _: Source, _: bool) -> Result<(), WatchError> {
        Ok(())
    }

    pub(super) fn forget(&self, _: RawFd) {}
}

impl AsFd for Poller {
    fn as_fd(&self) -> BorrowedFd<'_> {
        unreachable!("no model has a descriptor")
    }
}
