//! The host's end of a serial line: what the back ends have in common.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FileType, OFlags};

/// An open file that can be waited for while the line is in use.
pub(crate) type Pollable = Arc<dyn AsFd + Send + Sync>;

/// The files that a line waits for before it can go on, each with the conditions that end the wait.
pub(crate) type Pollables = Vec<(Pollable, PollFlags)>;

/// The host's end of a serial line. No method waits.
pub(crate) trait Line: Send {
    /// Sends the first bytes of `bytes` and returns how many; `WouldBlock` if the other end has to take
    /// something first. Any other error means that this line takes no such bytes: they are lost.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize>;

    /// Takes input; 0 at its end, after which it is not asked again. `WouldBlock` if there is none now.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize>;

    /// The files to wait for: before `write` if there is `output`, before `read` if there may be `input`; nothing if
    /// neither.
    fn watch(&self, input: bool, output: bool) -> Pollables;

    /// Returns true if the line may make anyone wait.
    fn needs_loop(&self) -> bool;
}

/// Waits for one of `fds` at most for `timeout` (for ever if `None`), through signals.
pub(crate) fn poll(fds: &mut [PollFd<'_>], timeout: Option<Duration>) -> io::Result<usize> {
    let timeout = timeout.and_then(|t| Timespec::try_from(t).ok());
    loop {
        match rustix::event::poll(fds, timeout.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => return Ok(other?),
        }
    }
}

/// A descriptor that is read or written without waiting.
pub(crate) struct Fd {
    file: Arc<File>,
    /// The open file description is shared with other processes and could not be opened anew, so that
    /// `O_NONBLOCK` must not be set: ask poll(2) first, and write no more than surely fits.
    ask: bool,
    /// Never makes anyone wait (a regular file).
    instant: bool,
}

impl Fd {
    /// Takes a descriptor that other processes may share, such as standard output.
    pub(crate) fn shared(fd: BorrowedFd<'_>, write: bool) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode);
        if kind.is_file() || kind.is_block_device() {
            return Ok(Self::of(fd.try_clone_to_owned()?.into(), false, true));
        }
        // O_NONBLOCK belongs to the open file description, which a shell shares: a description of our own
        // leaves the shell's alone.
        let own = OpenOptions::new()
            .read(!write)
            .write(write)
            .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
            .open(format!("/proc/self/fd/{}", fd.as_raw_fd()));
        Ok(match own {
            Ok(own) => Self::of(own, false, false),
            Err(_) => Self::of(fd.try_clone_to_owned()?.into(), true, false),
        })
    }

    /// Takes a descriptor that is this process's own, and makes it non-blocking.
    pub(crate) fn own(fd: OwnedFd) -> io::Result<Self> {
        rustix::fs::fcntl_setfl(&fd, rustix::fs::fcntl_getfl(&fd)? | OFlags::NONBLOCK)?;
        let file = File::from(fd);
        let instant = file.metadata()?.file_type().is_file();
        Ok(Self::of(file, false, instant))
    }

    fn of(file: File, ask: bool, instant: bool) -> Self {
        Self { file: Arc::new(file), ask, instant }
    }

    pub(crate) fn is_instant(&self) -> bool {
        self.instant
    }

    pub(crate) fn watch(&self, flags: PollFlags) -> (Pollable, PollFlags) {
        (self.file.clone(), flags)
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if !self.ask {
            return (&*self.file).write(bytes);
        }
        self.ready(PollFlags::OUT)?;
        // Writable means room for at least one byte.
        (&*self.file).write(bytes.get(..1).unwrap_or_default())
    }

    pub(crate) fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.ask {
            self.ready(PollFlags::IN)?;
        }
        (&*self.file).read(buf)
    }

    pub(crate) fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Returns true if the other end is closed.
    pub(crate) fn hung_up(&self) -> io::Result<bool> {
        Ok(self.now(PollFlags::empty())?.contains(PollFlags::HUP))
    }

    fn ready(&self, flags: PollFlags) -> io::Result<()> {
        if self.now(flags)?.is_empty() { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    }

    fn now(&self, flags: PollFlags) -> io::Result<PollFlags> {
        let mut fd = PollFd::from_borrowed_fd(self.file.as_fd(), flags);
        poll(std::slice::from_mut(&mut fd), Some(Duration::ZERO))?;
        Ok(fd.revents())
    }
}

/// A descriptor to read, another one to write, or one of them.
pub(crate) struct FdLine {
    pub(crate) input: Option<Fd>,
    pub(crate) output: Option<Fd>,
}

impl Line for FdLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.as_mut().map_or(Ok(bytes.len()), |out| out.write(bytes))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.as_mut().map_or(Ok(0), |input| input.read(buf))
    }

    fn watch(&self, input: bool, output: bool) -> Pollables {
        let input = self.input.as_ref().filter(|_| input).map(|fd| fd.watch(PollFlags::IN));
        let output = self.output.as_ref().filter(|_| output).map(|fd| fd.watch(PollFlags::OUT));
        input.into_iter().chain(output).collect()
    }

    fn needs_loop(&self) -> bool {
        self.input.is_some() || self.output.as_ref().is_some_and(|out| !out.is_instant())
    }
}

/// A writer of the caller's, which must not wait; no input.
pub(crate) struct WriterLine(pub(crate) Box<dyn Write + Send>);

impl Line for WriterLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Nobody could say when to try again.
        let lost = |e: io::Error| if e.kind() == io::ErrorKind::WouldBlock { io::Error::other(e) } else { e };
        let n = self.0.write(bytes).map_err(lost)?;
        self.0.flush().map_err(lost)?;
        Ok(n)
    }

    fn read(&mut self, _buf: &mut [u8]) -> io::Result<usize> {
        Ok(0)
    }

    fn watch(&self, _input: bool, _output: bool) -> Pollables {
        Pollables::new()
    }

    fn needs_loop(&self) -> bool {
        false
    }
}
