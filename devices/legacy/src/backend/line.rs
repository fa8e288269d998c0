//! The host's end of a serial line: what the back ends have in common.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use ossature_bus::HostStream;
use rustix::event::{PollFd, PollFlags, Timespec};

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

    /// Returns true if the input comes from a terminal, where somebody types.
    fn is_terminal(&self) -> bool;
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

/// A descriptor to read, another one to write, or one of them.
pub(crate) struct FdLine {
    pub(crate) input: Option<Arc<HostStream>>,
    pub(crate) output: Option<Arc<HostStream>>,
}

impl Line for FdLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.output.as_ref().map_or(Ok(bytes.len()), |out| out.write(bytes))
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.input.as_ref().map_or(Ok(0), |input| input.read(buf))
    }

    fn watch(&self, input: bool, output: bool) -> Pollables {
        let (input, output) =
            (self.input.as_ref().filter(|_| input), self.output.as_ref().filter(|_| output));
        let streams = [(input, PollFlags::IN), (output, PollFlags::OUT)].into_iter();
        let streams = streams.filter_map(|(stream, flags)| Some((stream?, flags)));
        // What cannot be watched is always ready.
        let watchable = streams.filter(|(stream, _)| stream.is_watchable());
        watchable.map(|(stream, flags)| (Arc::clone(stream) as Pollable, flags)).collect()
    }

    fn needs_loop(&self) -> bool {
        self.input.is_some() || self.output.as_ref().is_some_and(|output| output.is_watchable())
    }

    fn is_terminal(&self) -> bool {
        self.input.as_ref().is_some_and(|input| input.is_terminal())
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

    fn is_terminal(&self) -> bool {
        false
    }
}
