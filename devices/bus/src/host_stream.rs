//! A byte stream of the host, read and written without waiting.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};
use rustix::net::{RecvFlags, SendFlags};

use crate::Interest;

/// A byte stream of the host that a device reads or writes in its turns: a terminal, a pipe, a socket or a file. No
/// method waits: where the stream has nothing, or no room, the answer is `WouldBlock`, and a loop that watches the
/// descriptor says when to try again.
///
/// It leaves the descriptor that it is made of as it is. `O_NONBLOCK` belongs to the open file description, which a
/// program shares with the shell that started it, and with its own children: so a stream opens the file once more, with
/// a description of its own. Sockets, which cannot be opened again, are told with each call not to wait. What is left
/// (no `/proc`, or somebody else's terminal) is asked first whether it is ready, and then written a byte at a time:
/// there, and only there, a write waits if another process fills the last room in between.
#[derive(Debug)]
pub struct HostStream {
    file: File,
    way: Way,
    watchable: bool,
}

/// How not to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The description is non-blocking, or what is open never makes anyone wait (a file).
    Plain,
    /// It is a socket.
    Socket,
    /// Ask poll(2) first, and write no more than surely fits.
    Ask,
}

impl HostStream {
    /// A stream to read from.
    pub fn input(fd: impl AsFd) -> io::Result<Self> {
        Self::shared(fd.as_fd(), false)
    }

    /// A stream to write to.
    pub fn output(fd: impl AsFd) -> io::Result<Self> {
        Self::shared(fd.as_fd(), true)
    }

    /// A stream on a descriptor whose open file description is nobody else's: it is made non-blocking.
    pub fn owned(fd: OwnedFd) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        Self::of(fd.into(), Way::Plain)
    }

    fn shared(fd: BorrowedFd<'_>, write: bool) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        let copy = || fd.try_clone_to_owned().map(File::from);
        if kind.is_socket() {
            return Self::of(copy()?, Way::Socket);
        }
        if kind.is_file() || kind.is_block_device() {
            // A description of its own would have a position of its own.
            return Self::of(copy()?, Way::Plain);
        }
        let own = OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
            .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        match own {
            Ok(own) => Self::of(own, Way::Plain),
            Err(_) => Self::of(copy()?, Way::Ask),
        }
    }

    fn of(file: File, way: Way) -> io::Result<Self> {
        use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
        let event = EpollEvent::new(EventSet::IN, 0);
        let watchable = match Epoll::new()?.ctl(ControlOperation::Add, file.as_raw_fd(), event) {
            Ok(()) => true,
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::PERM.raw_os_error()) => false,
            Err(e) => return Err(e),
        };
        Ok(Self { file, way, watchable })
    }

    /// Returns true if a loop can watch it. What cannot be watched (a file, `/dev/null`) is always ready.
    pub fn is_watchable(&self) -> bool {
        self.watchable
    }

    /// Returns true if it is a terminal.
    pub fn is_terminal(&self) -> bool {
        rustix::termios::isatty(&self.file)
    }

    /// Returns true if a read or a write would not wait now: there is data, room, the end or an error.
    pub fn is_ready(&self, interest: Interest) -> io::Result<bool> {
        let flags = match interest {
            Interest::Readable => PollFlags::IN,
            Interest::Writable => PollFlags::OUT,
            Interest::Both => PollFlags::IN | PollFlags::OUT,
        };
        let mut fd = PollFd::new(&self.file, flags);
        loop {
            match rustix::event::poll(std::slice::from_mut(&mut fd), Some(&Timespec::default())) {
                Err(rustix::io::Errno::INTR) => {}
                other => return Ok(other? > 0),
            }
        }
    }

    /// Writes the first bytes of `bytes` and returns how many.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.way {
            Way::Plain => (&self.file).write(bytes),
            Way::Socket => {
                Ok(rustix::net::send(&self.file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
            }
            Way::Ask if self.is_ready(Interest::Writable)? => {
                // Writable means room for at least one byte.
                (&self.file).write(bytes.get(..1).unwrap_or_default())
            }
            Way::Ask => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Reads what there is, 0 bytes at the end.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.way {
            Way::Plain => (&self.file).read(buf),
            Way::Socket => Ok(rustix::net::recv(&self.file, buf, RecvFlags::DONTWAIT)?.0),
            Way::Ask if self.is_ready(Interest::Readable)? => (&self.file).read(buf),
            Way::Ask => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests;
