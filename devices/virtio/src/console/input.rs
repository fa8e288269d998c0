//! Where the guest's input comes from.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use ossature_memory::{Dma, DmaIoError, Segments};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::sys;

/// A descriptor from which the guest reads: a terminal, a pipe, a socket, a file.
///
/// Input is read only when the guest has given a buffer for it, straight into that buffer: what a slow guest
/// has not read stays where it comes from, and nothing grows here. A VMM that makes up input itself writes it
/// into a pipe or a socket pair, whose size the host's kernel bounds. Blocking mode is fine.
#[derive(Debug)]
pub struct ConsoleInput {
    fd: OwnedFd,
    /// Files and `/dev/null` cannot be waited for: they are always readable.
    waits: bool,
    ended: AtomicBool,
}

impl ConsoleInput {
    /// Input from `fd`; nothing else should read from it.
    pub fn new(fd: impl Into<OwnedFd>) -> io::Result<Self> {
        let fd = fd.into();
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN, 0);
        let waits = match epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => false,
            Err(e) => return Err(e),
        };
        Ok(Self { fd, waits, ended: AtomicBool::new(false) })
    }

    /// The descriptor to wait for, if waiting makes sense.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        self.waits.then(|| self.fd.as_fd())
    }

    /// Returns true if a read would give something now.
    pub(super) fn ready(&self) -> bool {
        !self.ended.load(Ordering::Relaxed) && sys::readable(self.fd.as_fd())
    }

    /// Fills the segments with what there is, without waiting where [`ready`](Self::ready). 0 bytes where there is
    /// nothing. After the end, or an error, there is nothing any more.
    pub(super) fn read(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        let result = match mem.readv(&self.fd, to) {
            Err(DmaIoError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => return Ok(0),
            other => other,
        };
        if !result.as_ref().is_ok_and(|n| *n > 0) {
            self.ended.store(true, Ordering::Relaxed);
        }
        result
    }
}
