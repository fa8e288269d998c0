//! Where a serial port's bytes go to and come from: one constructor for each kind of line.

pub(crate) mod line;
mod pty;
mod socket;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::escape::Escape;
use line::{Fd, FdLine, Line, WriterLine};
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
    /// The line is then read even if the guest does not read: the keys work when it hangs. Up to 4 KiB wait
    /// for the guest, what comes on top is dropped, as a terminal does.
    pub fn with_escape_keys(mut self, on_key: impl FnMut(Escape) + Send + 'static) -> Self {
        self.on_key = Some(Box::new(on_key));
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
/// The vCPU that sends calls `writer`, byte by byte, so it must not wait for anything, least of all for this
/// machine; what it refuses, with `WouldBlock` too, is lost.
pub fn writer(writer: impl Write + Send + 'static) -> Backend {
    Backend::of(WriterLine(Box::new(writer)))
}

/// This process's standard input and output. The end of the input leaves the output as it is.
///
/// A terminal must be in raw mode for the guest to get every key: see
/// [`RawTerminal`](crate::RawTerminal).
pub fn stdio() -> io::Result<Backend> {
    fd_line(Some(io::stdin().as_fd()), Some(io::stdout().as_fd()))
}

/// Input from one descriptor, output to another one, which other processes may share.
pub fn fds(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<Backend> {
    fd_line(input.as_ref().map(AsFd::as_fd), output.as_ref().map(AsFd::as_fd))
}

fn fd_line(input: Option<BorrowedFd<'_>>, output: Option<BorrowedFd<'_>>) -> io::Result<Backend> {
    let input = input.map(|fd| Fd::shared(fd, false)).transpose()?;
    let output = output.map(|fd| Fd::shared(fd, true)).transpose()?;
    Ok(Backend::of(FdLine { input, output }))
}

/// Output to the end of the file at `path`, which is made if there is none; no input.
pub fn file(path: &Path) -> io::Result<Backend> {
    let file: File = OpenOptions::new().append(true).create(true).open(path)?;
    Ok(Backend::of(FdLine { input: None, output: Some(Fd::own(file.into())?) }))
}

/// A new pseudo-terminal, and the path at which a terminal program opens it. It is raw. Output is dropped
/// while nobody has it open.
pub fn pty() -> io::Result<(Backend, PathBuf)> {
    let (line, path) = PtyLine::open()?;
    Ok((Backend::of(line), path))
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
