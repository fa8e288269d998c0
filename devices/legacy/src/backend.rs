//! Where a serial port's bytes go to and come from: one constructor for each kind of line.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;

use crate::serial::line::{Fd, FdLine, Line, WriterLine};
use crate::serial::{Escape, EscapeFilter};
use crate::serial::{PtyLine, SocketLine};

/// The host's end of a serial line.
pub struct Backend {
    pub(crate) line: Box<dyn Line>,
    pub(crate) on_key: Option<Box<dyn FnMut(Escape) + Send>>,
}

impl Backend {
    fn of(line: impl Line + 'static) -> Self {
        Self { line: Box::new(line), on_key: None }
    }

    /// Calls `on_key` for the escape keys in the line's input (see [`EscapeFilter`]),
    /// which the guest then does not get. The call comes from the port's event loop.
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

/// No line: output is dropped, there is no input but by [`SerialInput`](crate::SerialInput).
pub fn none() -> Backend {
    Backend::of(FdLine { input: None, output: None })
}

/// Output to `writer`, no input but by [`SerialInput`](crate::SerialInput).
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
    fds(Some(io::stdin().as_fd().try_clone_to_owned()?), Some(io::stdout().as_fd().try_clone_to_owned()?))
}

/// Input from one descriptor, output to another one, which other processes may share.
pub fn fds(input: Option<OwnedFd>, output: Option<OwnedFd>) -> io::Result<Backend> {
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
/// after the other. Output is dropped while there is none. The socket's file is removed at the end.
///
/// `AddrInUse` if `path` exists.
pub fn socket(path: &Path) -> io::Result<Backend> {
    Ok(Backend::of(SocketLine::bind(path)?))
}

/// A terminal's input without the escape keys, for a device that reads from a descriptor, such as a virtio
/// console. `on_key` is called for the keys even when nobody reads: what the descriptor has no room for is
/// dropped, as a terminal does. The thread that reads ends with the input.
pub fn without_escape_keys(
    mut input: impl Read + Send + 'static,
    mut on_key: impl FnMut(Escape) + Send + 'static,
) -> io::Result<OwnedFd> {
    let (mut guest, end) = UnixStream::pair()?;
    guest.set_nonblocking(true)?;
    thread::Builder::new().name("keyboard".to_owned()).spawn(move || {
        let mut filter = EscapeFilter::new();
        let mut piece = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            let length = match input.read(&mut buffer) {
                Ok(length @ 1..) => length,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                _ => break,
            };
            for &byte in buffer.iter().take(length) {
                let (byte, key) = filter.push(byte);
                piece.extend(byte);
                if let Some(key) = key {
                    send(&mut guest, &mut piece);
                    on_key(key);
                }
            }
            send(&mut guest, &mut piece);
        }
    })?;
    Ok(end.into())
}

/// Sends a piece of the input at once: a socket has room for a few hundred writes, however short they are.
fn send(guest: &mut UnixStream, piece: &mut Vec<u8>) {
    if !piece.is_empty() {
        // What there is no room for is dropped.
        let _ = guest.write(piece);
        piece.clear();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn escape_keys_are_taken_out_of_the_input_and_the_rest_goes_on_to_its_end() {
        let (keys, pressed) = channel();
        let fd = without_escape_keys(&b"a\x01hb\x01\x01c"[..], move |key| keys.send(key).unwrap()).unwrap();
        let mut rest = Vec::new();
        File::from(fd).read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"ab\x01c");
        assert_eq!(pressed.iter().collect::<Vec<_>>(), [Escape::Help]);
    }

    #[test]
    fn what_is_pasted_waits_for_the_guest() {
        let (keys, pressed) = channel();
        let pasted: Vec<u8> = (0..64 << 10).map(|n| b'a' + (n % 23) as u8).collect();
        let input = io::Cursor::new([&pasted[..], b"\x01h"].concat());
        let fd = without_escape_keys(input, move |key| keys.send(key).unwrap()).unwrap();
        assert_eq!(pressed.recv(), Ok(Escape::Help));
        let mut rest = Vec::new();
        File::from(fd).read_to_end(&mut rest).unwrap();
        assert!(rest == pasted, "{} of {} bytes", rest.len(), pasted.len());
    }

    #[test]
    fn b3_input_that_nobody_reads_is_dropped_and_the_keys_still_work() {
        let (keys, pressed) = channel();
        let endless = io::repeat(b'x').take(1 << 20).chain(&b"\x01x"[..]);
        let fd = without_escape_keys(endless, move |key| keys.send(key).unwrap()).unwrap();
        assert_eq!(pressed.recv(), Ok(Escape::Quit));
        drop(fd);
    }
}
