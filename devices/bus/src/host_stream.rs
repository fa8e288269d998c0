//! A byte stream of the host, read and written without waiting.

use std::fs::OpenOptions;
use std::io::{self, Stdin, Stdout};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::Interest;

/// A byte stream of the host that a device reads or writes in its turns: a terminal, a pipe, a socket or a file. No
/// method waits: where the stream has nothing, or no room, the answer is `WouldBlock`, and a loop that watches the
/// descriptor says when to try again.
///
/// It leaves the descriptor that it is made of as it is. `O_NONBLOCK` belongs to the open file description, which a
/// program shares with the shell that started it, and with its own children: so a stream opens a pipe or a terminal once
/// more, with a description of its own, and keeps the given one open. Sockets, which cannot be opened again, are told
/// with each call not to wait. What is left (open(2) is refused, there is no `/proc`, the main end of a pseudo-terminal,
/// where opening makes another one) is asked first whether it is ready, and then written no more than surely fits:
/// `PIPE_BUF` bytes to a pipe, one byte to anything else. There, and only there, a write waits if another process fills
/// the last room in between. Whoever knows that nobody else uses the description makes a stream that [owns](Self::owned)
/// it instead.
#[derive(Debug)]
pub struct HostStream {
    file: Held,
    /// What was opened again. It may be what keeps the stream from its end, as a FIFO that is open for both directions.
    _given: Option<Held>,
    way: Way,
    watchable: bool,
    /// Only a character device can be one.
    may_be_terminal: bool,
}

/// An open descriptor.
#[derive(Debug)]
enum Held {
    Own(OwnedFd),
    /// The process's, which stay open.
    Stdin(Stdin),
    Stdout(Stdout),
}

impl AsFd for Held {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Own(fd) => fd.as_fd(),
            Self::Stdin(stdin) => stdin.as_fd(),
            Self::Stdout(stdout) => stdout.as_fd(),
        }
    }
}

/// How not to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    /// The description is non-blocking, or what is open never makes anyone wait (a file).
    Plain,
    /// It is a socket.
    Socket,
    /// Ask poll(2) first, and write no more than surely fits: so many bytes.
    Ask(usize),
}

/// A pipe polls writable while it has a free page, which takes as much. It is the size of a page on x86_64.
const PIPE_BUF: usize = 4096;

impl HostStream {
    /// A stream to read from.
    pub fn input(fd: impl AsFd) -> io::Result<Self> {
        Self::shared(Held::Own(fd.as_fd().try_clone_to_owned()?), false)
    }

    /// This process's standard input.
    pub fn stdin() -> io::Result<Self> {
        Self::shared(Held::Stdin(io::stdin()), false)
    }

    /// This process's standard output.
    pub fn stdout() -> io::Result<Self> {
        Self::shared(Held::Stdout(io::stdout()), true)
    }

    /// A stream to write to.
    pub fn output(fd: impl AsFd) -> io::Result<Self> {
        Self::shared(Held::Own(fd.as_fd().try_clone_to_owned()?), true)
    }

    /// A stream on a descriptor whose open file description is nobody else's: it is made non-blocking.
    pub fn owned(fd: OwnedFd) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        let kind = kind(fd.as_fd())?;
        // A write to a socket may raise SIGPIPE otherwise.
        let way = if kind == Kind::Socket { Way::Socket } else { Way::Plain };
        Self::of(Held::Own(fd), None, way, kind)
    }

    fn shared(given: Held, write: bool) -> io::Result<Self> {
        let fd = given.as_fd();
        let kind = kind(fd)?;
        // The main end of a pseudo-terminal has a number, and each opening of it (`/dev/ptmx`) makes another one.
        let terminal = || {
            let number = || rustix::pty::ptsname(fd, Vec::new());
            rustix::termios::isatty(fd) && number().is_err_and(|e| e == Errno::NOTTY)
        };
        match kind {
            Kind::Socket => return Self::of(given, None, Way::Socket, kind),
            // A description of its own would have a position of its own.
            Kind::Ready => return Self::of(given, None, Way::Plain, kind),
            Kind::Device if !terminal() => {}
            Kind::Fifo | Kind::Device => {
                let own = OpenOptions::new()
                    .read(!write)
                    .write(write)
                    .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
                    .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
                if let Ok(own) = own {
                    return Self::of(Held::Own(own.into()), Some(given), Way::Plain, kind);
                }
            }
            Kind::Other => {}
        }
        Self::asked(given, kind)
    }

    /// A stream that has no description of its own.
    fn asked(given: Held, kind: Kind) -> io::Result<Self> {
        let room = if kind == Kind::Fifo { PIPE_BUF } else { 1 };
        let mut stream = Self::of(given, None, Way::Ask(room), kind)?;
        if !stream.watchable {
            // A device that has its answer at once, such as `/dev/zero`.
            stream.way = Way::Plain;
        }
        Ok(stream)
    }

    fn of(file: Held, given: Option<Held>, way: Way, kind: Kind) -> io::Result<Self> {
        let watchable = match kind {
            Kind::Fifo | Kind::Socket => true,
            Kind::Ready => false,
            Kind::Device | Kind::Other => can_be_watched(file.as_fd())?,
        };
        Ok(Self { file, _given: given, way, watchable, may_be_terminal: kind == Kind::Device })
    }

    /// Returns true if a loop can watch it. What cannot be watched (a file, `/dev/null`) is always ready.
    pub fn is_watchable(&self) -> bool {
        self.watchable
    }

    /// Returns true if it is a terminal.
    pub fn is_terminal(&self) -> bool {
        self.may_be_terminal && rustix::termios::isatty(&self.file)
    }

    /// Returns true if a read or a write would not wait now: there is data, room, the end or an error.
    pub fn is_ready(&self, interest: Interest) -> io::Result<bool> {
        let flags = match interest {
            Interest::Readable => PollFlags::IN,
            Interest::Writable => PollFlags::OUT,
            Interest::Both => PollFlags::IN | PollFlags::OUT,
        };
        Ok(!self.poll(flags)?.is_empty())
    }

    /// Returns true if the other end is gone: closed, both directions of it shut down, or broken. There may be data that
    /// it has sent before.
    pub fn is_hung_up(&self) -> io::Result<bool> {
        Ok(self.poll(PollFlags::empty())?.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::NVAL))
    }

    /// How many bytes can be read of what has come by now.
    pub fn unread(&self) -> io::Result<u64> {
        Ok(rustix::io::ioctl_fionread(&self.file)?)
    }

    /// What is so of it now: of `flags`, and a hang-up or an error.
    fn poll(&self, flags: PollFlags) -> io::Result<PollFlags> {
        let mut fd = PollFd::new(&self.file, flags);
        loop {
            match rustix::event::poll(std::slice::from_mut(&mut fd), Some(&Timespec::default())) {
                Err(Errno::INTR) => {}
                other => return other.map(|_| fd.revents()).map_err(io::Error::from),
            }
        }
    }

    /// Writes the first bytes of `bytes` and returns how many.
    pub fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        match self.way {
            Way::Plain => Ok(rustix::io::write(&self.file, bytes)?),
            Way::Socket => {
                Ok(rustix::net::send(&self.file, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?)
            }
            Way::Ask(room) if self.is_ready(Interest::Writable)? => {
                Ok(rustix::io::write(&self.file, bytes.get(..room).unwrap_or(bytes))?)
            }
            Way::Ask(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// Reads what there is, 0 bytes at the end.
    pub fn read(&self, buf: &mut [u8]) -> io::Result<usize> {
        match self.way {
            Way::Plain => Ok(rustix::io::read(&self.file, buf)?),
            Way::Socket => Ok(rustix::net::recv(&self.file, buf, RecvFlags::DONTWAIT)?.0),
            Way::Ask(_) if self.is_ready(Interest::Readable)? => Ok(rustix::io::read(&self.file, buf)?),
            Way::Ask(_) => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}

/// What is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Fifo,
    Socket,
    /// What never makes anyone wait: a file, a block device, `/dev/null`.
    Ready,
    /// A character device: a terminal, or what only it knows.
    Device,
    Other,
}

/// The numbers of `/dev/null` (the kernel's list of devices, `Documentation/admin-guide/devices.txt`).
const NULL: (u32, u32) = (1, 3);

fn kind(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    let about = rustix::fs::fstat(fd)?;
    let numbers = (rustix::fs::major(about.st_rdev), rustix::fs::minor(about.st_rdev));
    Ok(match FileType::from_raw_mode(about.st_mode) {
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::RegularFile | FileType::BlockDevice => Kind::Ready,
        FileType::CharacterDevice if numbers == NULL => Kind::Ready,
        FileType::CharacterDevice => Kind::Device,
        _ => Kind::Other,
    })
}

/// Asks the kernel: it refuses (`EPERM`) what has no way to say when it is ready.
fn can_be_watched(file: BorrowedFd<'_>) -> io::Result<bool> {
    use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
    let event = EpollEvent::new(EventSet::IN, 0);
    match Epoll::new()?.ctl(ControlOperation::Add, file.as_raw_fd(), event) {
        Ok(()) => Ok(true),
        Err(e) if e.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(false),
        Err(e) => Err(e),
    }
}

impl AsFd for HostStream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests;
