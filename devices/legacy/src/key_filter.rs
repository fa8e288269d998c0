//! A terminal's input without the escape keys, for a device that reads from a descriptor.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use ossature_bus::{EventLoop, Handler, HostStream, Hosted, Interest, Source, Turn, WatchError};

use crate::escape::{Escape, EscapeFilter};

/// How much waits for room in the socket to the device: as much as a terminal keeps.
const CAPACITY: usize = 4096;
/// The room in that socket, or what the kernel makes of it: little, because what is in there has left the terminal.
const SOCKET: usize = 1024;

/// Passes what is typed on a terminal on to a device that reads from a descriptor, such as a virtio console, without the
/// escape keys (see [`EscapeFilter`]).
///
/// So that the keys work when the guest does not read, somewhat more than 4 KiB are read before the device takes them,
/// and wait for it. What is typed on top stays in the terminal, keys included; nothing is lost. The end of the input is the end of
/// what the device reads.
pub struct KeyFilter {
    input: HostStream,
    input_open: bool,
    device: UnixStream,
    /// What the socket has no room for.
    waiting: Vec<u8>,
    filter: EscapeFilter,
    on_key: Box<dyn FnMut(Escape) + Send>,
}

impl KeyFilter {
    /// Takes a terminal that other processes may share, such as standard input, and calls `on_key` for each escape
    /// key, on the thread that runs the loop. If it panics, the filter and the input end, and the loop's
    /// [`on_panic`](EventLoop::on_panic) hook is told. Returns the filter and the descriptor for the device.
    ///
    /// `None` if `input` is not a terminal: all bytes of a pipe, a socket or a file are data, and the device reads them
    /// there itself.
    pub fn new(
        input: impl AsFd,
        on_key: impl FnMut(Escape) + Send + 'static,
    ) -> io::Result<Option<(Self, OwnedFd)>> {
        let input = HostStream::input(input)?;
        if !input.is_terminal() {
            return Ok(None);
        }
        let (device, theirs) = UnixStream::pair()?;
        device.set_nonblocking(true)?;
        rustix::net::sockopt::set_socket_send_buffer_size(&device, SOCKET)?;
        let filter = EscapeFilter::new();
        let on_key = Box::new(on_key);
        let this = Self { input, input_open: true, device, waiting: Vec::new(), filter, on_key };
        Ok(Some((this, theirs.into())))
    }

    /// Has its turns on `event_loop` for as long as the result lives.
    pub fn on(self, event_loop: &EventLoop) -> Result<Hosted<Self>, WatchError> {
        event_loop.host(self)
    }

    /// Passes on what waits.
    fn write(&mut self) -> Turn {
        match (&self.device).write(&self.waiting) {
            Ok(n) => drop(self.waiting.drain(..n)),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Turn::Sleep,
            // The device is gone.
            Err(_) => self.waiting.clear(),
        }
        Turn::Again
    }

    /// Reads once and takes the keys out.
    fn read(&mut self) -> Turn {
        let mut buffer = [0; CAPACITY];
        let room = buffer.get_mut(self.waiting.len()..).unwrap_or_default();
        if room.is_empty() || !self.input_open {
            return Turn::Sleep;
        }
        let length = match self.input.read(room) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Turn::Again,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Turn::Sleep,
            // The terminal is gone.
            Err(_) => 0,
        };
        self.input_open = length > 0;
        for &byte in room.iter().take(length) {
            let (byte, key) = self.filter.push(byte);
            self.waiting.extend(byte);
            if let Some(key) = key {
                (self.on_key)(key);
            }
        }
        Turn::Again
    }
}

impl Handler for KeyFilter {
    fn sources(&self) -> Vec<Source> {
        let (input, device) = (self.input.as_fd().as_raw_fd(), self.device.as_raw_fd());
        vec![
            Source { token: 0, fd: input, interest: Interest::Readable },
            Source { token: 1, fd: device, interest: Interest::Writable },
        ]
    }

    fn turn(&mut self, _: u16) -> Turn {
        let wrote = if self.waiting.is_empty() { Turn::Sleep } else { self.write() };
        let read = self.read();
        if !self.input_open && self.waiting.is_empty() {
            // It may be gone itself.
            let _ = self.device.shutdown(Shutdown::Write);
            return Turn::Sleep;
        }
        if wrote == Turn::Again { wrote } else { read }
    }
}

impl std::fmt::Debug for KeyFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("KeyFilter")
    }
}

#[cfg(test)]
mod tests;
