//! Where the guest's output goes.

use std::fmt;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};

use ossature_bus::HostStream;

/// Where the guest's output goes: a terminal, a pipe, a socket, a file, or a writer in this process.
///
/// What a descriptor does not take stays in the guest's buffer, and goes on as soon as there is room: nothing is lost,
/// and nobody waits but the guest. Descriptors stay as they are, blocking or not (see [`HostStream`]).
pub struct ConsoleOutput(Kind);

enum Kind {
    Stream(HostStream),
    Writer(Box<dyn Write + Send>),
}

/// Output to a stream, such as one that [owns](HostStream::owned) its descriptor.
impl From<HostStream> for ConsoleOutput {
    fn from(stream: HostStream) -> Self {
        Self(Kind::Stream(stream))
    }
}

impl ConsoleOutput {
    /// Output to `fd`, which other processes may share, such as standard output.
    pub fn new(fd: impl AsFd) -> io::Result<Self> {
        HostStream::output(fd).map(Self::from)
    }

    /// Output to what is in this process: a buffer, a channel. It must not wait, because that stops every worker on
    /// the same thread. It is flushed after each turn. What it refuses is lost and counted, `WouldBlock` included: it
    /// has no way to say when to try again. A descriptor belongs into [`new`](Self::new).
    pub fn writer(writer: impl Write + Send + 'static) -> Self {
        Self(Kind::Writer(Box::new(writer)))
    }

    /// The descriptor to wait for.
    pub(super) fn source(&self) -> Option<BorrowedFd<'_>> {
        match &self.0 {
            Kind::Stream(stream) => stream.is_watchable().then(|| stream.as_fd()),
            Kind::Writer(_) => None,
        }
    }

    /// Writes the first bytes of `bytes` and returns how many; `WouldBlock` if it takes some later.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.0 {
            Kind::Stream(stream) => stream.write(bytes),
            Kind::Writer(writer) => match writer.write(bytes) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => Err(io::Error::other(e)),
                other => other,
            },
        }
    }

    /// Has a writer pass on what it keeps.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.0 {
            Kind::Stream(_) => Ok(()),
            Kind::Writer(writer) => writer.flush(),
        }
    }
}

impl fmt::Debug for ConsoleOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Stream(stream) => stream.fmt(f),
            Kind::Writer(_) => f.write_str("Writer"),
        }
    }
}
