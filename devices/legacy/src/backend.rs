//! Where a serial port's bytes go to and come from: one constructor for each kind of line. What opens a path has a twin
//! that takes what is open already: [`file()`] and [`fds`] or [`streams`], [`pty()`] and [`pty_from`], [`socket()`] and [`listener`].

pub(crate) mod line;
mod pty;
mod socket;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ossature_bus::HostStream;

use crate::escape::Escape;
use line::{FdLine, Line, WriterLine};
use pty::PtyLine;
use socket::SocketLine;

/// The host's end of a serial line.
pub struct Backend {
    pub(crate) line: Box<dyn Line>,
    pub(crate) on_key: Option<Box<dyn FnMut(Escape) + Send>>,
}

impl Backend {
    fn of(line: impl Line + 'static) -> Self {
        Self { line: Box::new(line), on_key: None }
    }

    /// Calls `on_key` for the escape keys in the line's input (see [`EscapeFilter`](crate::EscapeFilter)),
    /// which the guest then does not get. The call comes from the port's event loop; if it panics, the port reports
    /// [`Panicked`](ossature_bus::DeviceEvent::Panicked) and has no more turns until it is attached again.
    ///
    /// There are such keys on a terminal only: [`stdio`] and [`fds`] whose input is one, and [`pty`]. On any other line
    /// all bytes are data, and this changes nothing.
    ///
    /// So that the keys work when the guest hangs, up to 4 KiB are read before the guest takes them, and wait for it.
    /// What is typed on top stays in the terminal, keys included.
    pub fn with_escape_keys(mut self, on_key: impl FnMut(Escape) + Send + 'static) -> Self {
        if self.line.is_terminal() {
            self.on_key = Some(Box::new(on_key));
        }
        self
    }
}

impl std::fmt::Debug for Backend {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Backend")
    }
}

/// No line: output is dropped, and there is no input except through [`SerialInput`](crate::SerialInput).
pub fn none() -> Backend {
    Backend::of(FdLine { input: None, output: None })
}

/// Output to `writer`, and no input except through [`SerialInput`](crate::SerialInput).
///
/// For what is in this process: a buffer, a channel. The vCPU that sends calls `writer`, byte by byte, so it must not
/// wait for anything, least of all for this machine; what it refuses, with `WouldBlock` too, is lost. A descriptor
/// belongs into [`fds`], which waits for room.
pub fn writer(writer: impl Write + Send + 'static) -> Backend {
    Backend::of(WriterLine(Box::new(writer)))
}

/// This process's standard input and output. The end of the input leaves the output as it is.
///
/// A terminal must be in raw mode for the guest to get every key: see
/// [`RawTerminal`](crate::RawTerminal).
pub fn stdio() -> io::Result<Backend> {
    Ok(streams(Some(HostStream::stdin()?), Some(HostStream::stdout()?)))
}

/// Input from one descriptor, output to another one, which other processes may share. A file for output should be open
/// with `O_APPEND`, as one by [`file()`] is.
pub fn fds(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<Backend> {
    let input = input.map(HostStream::input).transpose()?;
    Ok(streams(input, output.map(HostStream::output).transpose()?))
}

/// As [`fds`], with streams that are made already, such as ones that [own](HostStream::owned) their descriptors.
pub fn streams(input: Option<HostStream>, output: Option<HostStream>) -> Backend {
    Backend::of(FdLine { input: input.map(Arc::new), output: output.map(Arc::new) })
}

/// Output to the end of the file at `path`, which is made if there is none; no input.
pub fn file(path: &Path) -> io::Result<Backend> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(streams(None, Some(HostStream::owned(file.into())?)))
}

/// A new pseudo-terminal, and the path at which a terminal program opens it. It is raw. Output is dropped
/// while nobody has it open.
pub fn pty() -> io::Result<(Backend, PathBuf)> {
    let (line, path) = PtyLine::open()?;
    Ok((Backend::of(line), path))
}

/// A pseudo-terminal that is open already, both ends of it (openpty(3)): the guest has the `main` one. It is made raw.
/// The other end is closed: a terminal program opens it by its path, ptsname(3). Output is dropped while nobody has it
/// open.
pub fn pty_from(main: impl Into<OwnedFd>, other: impl Into<OwnedFd>) -> io::Result<Backend> {
    Ok(Backend::of(PtyLine::new(main.into(), other.into())?))
}

/// A Unix stream socket that is made at `path` and takes one client at a time, any number of them one
/// after the other. Output is dropped while there is none. The socket's file is removed at the end, if it is still this
/// one.
///
/// A socket at `path` on which nobody listens, as a process that was killed leaves it, is replaced. `AddrInUse` if another
/// process listens on it, or if there is a file of another kind.
pub fn socket(path: &Path) -> io::Result<Backend> {
    Ok(Backend::of(SocketLine::bind(path)?))
}

/// As [`socket()`], with a socket that listens already. It becomes non-blocking; its file, if it has one, stays.
pub fn listener(listener: UnixListener) -> io::Result<Backend> {
    Ok(Backend::of(SocketLine::open(listener)?))
}

/// One connection, which becomes non-blocking. Once its peer has gone, output is dropped.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use ossature_legacy::{Serial, SerialPort, backend};
///
/// let (ours, guests) = UnixStream::pair()?;
/// let serial = Serial::new("com1", SerialPort::COM1, backend::stream(guests)?);
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn stream(stream: UnixStream) -> io::Result<Backend> {
    Ok(Backend::of(SocketLine::connected(stream)?))
}
