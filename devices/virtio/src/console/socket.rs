//! A port's end that is a listening Unix socket: clients come and go while the guest runs.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use ossature_bus::{HostStream, Interest, SocketFile};
use ossature_memory::{Dma, DmaIoError, Segments};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// A listening Unix stream socket as the host's end of a [`ConsolePort`](super::ConsolePort). It has one client at a
/// time: others that connect wait until that one has gone.
///
/// The guest sees a client come and go as its port opens and closes at the host's end. What a client has sent is given
/// to the guest before it is told that the client has gone; if the guest does not take it, it is dropped when the next
/// client comes. A client that only shuts its sending direction down goes on to get output.
pub struct PortSocket {
    listener: UnixListener,
    /// Watches the listener and the client, who changes, so that the worker has one descriptor to wait for.
    epoll: Epoll,
    client: Option<Client>,
    /// There is something for [`update`](Self::update) beside events of descriptors.
    changed: bool,
    /// Its file, if it was made here: removed after the listener is closed.
    _file: Option<SocketFile>,
}

struct Client {
    stream: HostStream,
    /// All that it has sent is read.
    input_ended: bool,
    /// It takes no output any more.
    output_ended: bool,
    /// It has gone, and something that it has sent is unread.
    leaving: bool,
}

/// What has happened to a socket's clients.
#[derive(Debug, Default)]
pub(super) struct Change {
    /// A client has gone.
    pub(super) closed: bool,
    /// A client has come.
    pub(super) opened: bool,
    /// Bytes of the client that has gone, which nobody has read.
    pub(super) unread: u64,
    /// Why a client could not be accepted.
    pub(super) error: Option<io::Error>,
}

impl PortSocket {
    /// A socket that listens at `path`; its file is removed at the end. See [`SocketFile::bind`].
    pub fn bind(path: impl AsRef<Path>) -> io::Result<Self> {
        let (listener, file) = SocketFile::bind(path)?;
        Ok(Self { _file: Some(file), ..Self::new(listener)? })
    }

    /// One that listens already. It is made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new()?;
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, 0);
        epoll.ctl(ControlOperation::Add, listener.as_raw_fd(), event)?;
        Ok(Self { listener, epoll, client: None, changed: false, _file: None })
    }

    /// The descriptor to wait for.
    pub(super) fn source(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.client.is_some()
    }

    /// Returns true if there is a client that takes output.
    pub(super) fn takes_output(&self) -> bool {
        self.client.as_ref().is_some_and(|client| !client.output_ended)
    }

    /// Returns true if [`update`](Self::update) is to be called, although no event says so.
    pub(super) fn has_changed(&self) -> bool {
        self.changed || self.client.as_ref().is_some_and(|client| client.leaving && client.unread() == 0)
    }

    /// Takes leave of a client that has gone, and takes the next one; at most one of each, as the events of the next
    /// one tell of it again.
    pub(super) fn update(&mut self) -> Change {
        self.changed = false;
        // All of them, as they are edges.
        let mut events = [EpollEvent::default(); 4];
        while self.epoll.wait(0, &mut events).is_ok_and(|count| count == events.len()) {}
        let mut change = Change::default();
        if let Some(client) = &mut self.client {
            if !client.has_gone() {
                return change;
            }
            change.unread = client.unread();
            client.leaving = true;
        }
        let next = match self.accept() {
            Err(e) if e.kind() == ErrorKind::WouldBlock => None,
            // That one is not there any more; another one may be.
            Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {
                self.changed = true;
                None
            }
            Err(e) => {
                change.error = Some(e);
                None
            }
            Ok(client) => Some(client),
        };
        if next.is_none() && change.unread > 0 {
            // It is still to be read.
            return Change { error: change.error, ..Change::default() };
        }
        change.opened = next.is_some();
        let gone = std::mem::replace(&mut self.client, next);
        // Closing its descriptor ends the watch.
        change.closed = gone.is_some();
        change
    }

    fn accept(&self) -> io::Result<Client> {
        let (stream, _) = self.listener.accept()?;
        let stream = HostStream::owned(stream.into())?;
        let interest = EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED;
        self.epoll.ctl(ControlOperation::Add, stream.as_fd().as_raw_fd(), EpollEvent::new(interest, 1))?;
        Ok(Client { stream, input_ended: false, output_ended: false, leaving: false })
    }

    /// Returns true if a read would give something now.
    pub(super) fn ready(&self) -> bool {
        let readable = |client: &Client| {
            !client.input_ended && client.stream.is_ready(Interest::Readable).unwrap_or(true)
        };
        self.client.as_ref().is_some_and(readable)
    }

    /// Fills the segments with what the client has sent; 0 bytes where there is nothing, or nothing any more.
    pub(super) fn read(&mut self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        let Some(client) = &mut self.client else { return Ok(0) };
        match mem.readv(&client.stream, to) {
            Err(DmaIoError::Io(e)) if is_for_later(&e) => return Ok(0),
            Ok(n) if n > 0 => return Ok(n),
            // A client may go in any way that it likes.
            Ok(_) | Err(DmaIoError::Io(_)) => {}
            Err(error) => return Err(error),
        }
        client.input_ended = true;
        self.changed = true;
        Ok(0)
    }

    /// Writes the first bytes of `bytes`; `NotConnected` if nobody takes any.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(client) = self.client.as_mut().filter(|client| !client.output_ended) else {
            return Err(ErrorKind::NotConnected.into());
        };
        match client.stream.write(bytes) {
            Err(e) if !is_for_later(&e) => {
                client.output_ended = true;
                self.changed = true;
                Err(ErrorKind::NotConnected.into())
            }
            result => result,
        }
    }
}

fn is_for_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Client {
    /// Returns true if it has closed its end, or both directions of it.
    fn has_gone(&self) -> bool {
        self.stream.is_hung_up().unwrap_or(true)
    }

    fn unread(&self) -> u64 {
        if self.input_ended { 0 } else { self.stream.unread().unwrap_or(0) }
    }
}

impl std::fmt::Debug for PortSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PortSocket").field("listener", &self.listener).finish_non_exhaustive()
    }
}
