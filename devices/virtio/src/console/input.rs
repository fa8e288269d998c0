//! Where the guest's input comes from.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_bus::{HostStream, Interest};
use ossature_memory::{Dma, DmaIoError, Segments};

/// A descriptor from which the guest reads: a terminal, a pipe, a socket, a file.
///
/// Input is read only when the guest listens and has given a buffer for it, straight into that buffer: what a slow guest
/// has not read stays where it comes from, and nothing grows here. A VMM that makes up input itself writes it
/// into a pipe or a socket pair, whose size the host's kernel bounds. Descriptors stay as they are, blocking or not (see
/// [`HostStream`]).
#[derive(Debug)]
pub struct ConsoleInput {
    stream: HostStream,
    ended: AtomicBool,
}

/// Input from a stream, such as one that [owns](HostStream::owned) its descriptor.
impl From<HostStream> for ConsoleInput {
    fn from(stream: HostStream) -> Self {
        Self { stream, ended: AtomicBool::new(false) }
    }
}

impl ConsoleInput {
    /// Input from `fd`, which other processes may share; nothing else should read from it.
    pub fn new(fd: impl AsFd) -> io::Result<Self> {
        HostStream::input(fd).map(Self::from)
    }

    /// The descriptor to wait for. Files and `/dev/null` cannot be waited for: they are always readable.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.stream.is_watchable().then(|| self.stream.as_fd())
    }

    /// Returns true if a read would give something now.
    pub(super) fn ready(&self) -> bool {
        !self.ended.load(Ordering::Relaxed) && self.stream.is_ready(Interest::Readable).unwrap_or(true)
    }

    /// Fills the segments with what there is, without waiting where [`ready`](Self::ready). 0 bytes where there is
    /// nothing. After the end, or an error, there is nothing any more.
    pub(super) fn read(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        let result = match mem.readv(&self.stream, to) {
            Err(DmaIoError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            other => other,
        };
        if !result.as_ref().is_ok_and(|n| *n > 0) {
            self.ended.store(true, Ordering::Relaxed);
        }
        result
    }
}
