//! What a handler is: the descriptors that wake it, and the turns in which it works.

use std::io;
use std::os::fd::RawFd;

/// A descriptor that wakes a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Passed to [`Handler::turn`].
    pub token: u16,
    /// The descriptor; it stays open for as long as it is watched.
    pub fd: RawFd,
    /// What it is watched for.
    pub interest: Interest,
}

/// What a descriptor is watched for. A hang-up or an error of the other end always counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Each time it becomes readable (edge-triggered).
    Readable,
    /// Each time it becomes writable (edge-triggered).
    Writable,
    /// Either.
    Both,
}

/// What a handler wants after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// To sleep until a source wakes it.
    Sleep,
    /// Another turn with the same token after the other handlers had theirs: its budget is used up, its work is not
    /// done.
    Again,
}

/// Something that does its work in turns on an [`EventLoop`](crate::EventLoop).
pub trait Handler: Send {
    /// The descriptors that wake it. The loop asks once, when it hosts the handler;
    /// [`LoopHandle::watch`](crate::LoopHandle::watch) adds more later.
    fn sources(&self) -> Vec<Source>;
    /// Does a bounded amount of work for one source and waits for nothing but the host's kernel. It is also called
    /// once for each of the [`sources`](Self::sources) after the handler was hosted, so that nothing that happened
    /// before is missed.
    ///
    /// A handler that panics has no more turns and is dropped; see
    /// [`EventLoop::on_panic`](crate::EventLoop::on_panic).
    fn turn(&mut self, token: u16) -> Turn;
}

/// A descriptor that cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch descriptor {fd}: {source}")]
pub struct WatchError {
    /// The descriptor.
    pub fd: RawFd,
    /// The kernel's answer: `EPERM` for a file that is always ready.
    pub source: io::Error,
}
