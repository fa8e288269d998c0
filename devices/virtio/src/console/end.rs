//! A port's end on the host: streams that are always there, or a socket with clients.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use ossature_memory::{Dma, DmaIoError, Segments};

use super::input::ConsoleInput;
use super::output::ConsoleOutput;
use super::socket::PortSocket;

#[derive(Debug)]
pub(super) enum End {
    Streams { input: Option<ConsoleInput>, output: ConsoleOutput },
    Socket(PortSocket),
}

impl End {
    /// What wakes for input, and what wakes for room. A socket has one descriptor for both, and for what happens to its
    /// clients.
    pub(super) fn sources(&self) -> (Option<RawFd>, Option<RawFd>) {
        match self {
            Self::Streams { input, output } => {
                let input = input.as_ref().and_then(|input| input.source()).map(|fd| fd.as_raw_fd());
                (input, output.source().map(|fd| fd.as_raw_fd()))
            }
            Self::Socket(socket) => (Some(socket.source()), None),
        }
    }

    /// Returns true if there is somebody at the end.
    pub(super) fn is_connected(&self) -> bool {
        match self {
            Self::Streams { .. } => true,
            Self::Socket(socket) => socket.is_connected(),
        }
    }

    /// Returns true if there is somebody who takes output.
    pub(super) fn takes_output(&self) -> bool {
        match self {
            Self::Streams { .. } => true,
            Self::Socket(socket) => socket.takes_output(),
        }
    }

    /// Returns true if what takes no output now will wake the worker.
    pub(super) fn is_watched(&self) -> bool {
        match self {
            Self::Streams { output, .. } => output.source().is_some(),
            Self::Socket(_) => true,
        }
    }

    /// Returns true if a read would give something now.
    pub(super) fn ready(&self) -> bool {
        match self {
            Self::Streams { input, .. } => input.as_ref().is_some_and(ConsoleInput::ready),
            Self::Socket(socket) => socket.ready(),
        }
    }

    /// Fills the segments with what there is, without waiting where it is [`ready`](Self::ready).
    pub(super) fn read(&mut self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        match self {
            Self::Streams { input, .. } => input.as_ref().map_or(Ok(0), |input| input.read(mem, to)),
            Self::Socket(socket) => socket.read(mem, to),
        }
    }

    /// Writes the first bytes of `bytes` and returns how many; `WouldBlock` if it takes some later, `NotConnected` if
    /// there is nobody to take it.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Streams { output, .. } => output.write(bytes),
            Self::Socket(socket) => socket.write(bytes),
        }
    }

    /// Has a writer pass on what it keeps.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Streams { output, .. } => output.flush(),
            Self::Socket(_) => Ok(()),
        }
    }
}
