//! A stream socket with whole frames behind their lengths, as QEMU's `-netdev stream` and passt speak it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::{HostStream, Syscall, TimerSource};
use ossature_memory::{Dma, DmaIoError, Segments};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::header::{ETHERNET_HEADER, HEADER_LEN, MAX_PACKET};
use super::io::{NetIo, Offloads, Unsent};

/// Before each frame: its length, the most significant byte first.
const LENGTH: usize = 4;
/// The longest frame.
const MAX_FRAME: usize = MAX_PACKET as usize - HEADER_LEN;
/// Bytes that one call reads at most. The longest frame fits.
const INPUT: usize = 256 << 10;
/// Once so many bytes wait for the peer, the driver waits, too.
const OUTPUT: usize = 256 << 10;
/// How long nobody answers before the next attempt.
const RETRY: Duration = Duration::from_secs(1);

/// A stream socket that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StreamError {
    /// Nobody listens there, or the host refuses.
    #[error("cannot connect to the socket {}: {source}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A descriptor that is no stream socket.
    #[error("not the descriptor of a stream socket")]
    NotAStream,
    /// The host failed to make what watches the socket.
    #[error("cannot watch a stream socket: {source}")]
    Watch {
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A network at the other end of a stream socket: each frame follows its length in 32 bits, the most significant byte
/// first. QEMU calls it `-netdev stream`, and Debian's `passt` connects a guest to the network of its user that way,
/// without root. There is no place for a virtio-net header, so no offloads are offered.
///
/// When the peer goes, or says what is no frame, the link goes down. A socket with a path is connected anew as soon as
/// somebody listens there again, and the link comes up.
#[derive(Debug)]
pub struct StreamSocket {
    path: Option<PathBuf>,
    /// Watches the socket, whichever it is, and the timer.
    epoll: OwnedFd,
    retry: TimerSource,
    connected: AtomicBool,
    connection: Mutex<Connection>,
}

#[derive(Debug, Default)]
struct Connection {
    socket: Option<HostStream>,
    /// What has come and was not yet taken: these bytes of the room.
    input: Vec<u8>,
    taken: usize,
    filled: usize,
    /// What waits for the peer, behind what it has.
    output: Vec<u8>,
    sent: usize,
    /// When to try again.
    retry_at: Option<Instant>,
}

impl StreamSocket {
    /// Connects to the Unix socket `path`, on which somebody listens.
    pub fn connect(path: impl AsRef<Path>) -> Result<Self, StreamError> {
        let path = path.as_ref();
        let socket =
            connect(path).map_err(|source| StreamError::Connect { path: path.to_owned(), source })?;
        Self::new(Some(path.to_owned()), socket).map_err(|source| StreamError::Watch { source })
    }

    /// Takes a connected stream socket. When its peer goes, the link is down for good. It becomes non-blocking.
    pub fn from_fd(fd: impl Into<OwnedFd>) -> Result<Self, StreamError> {
        let fd = fd.into();
        if rustix::net::sockopt::socket_type(&fd) != Ok(SocketType::STREAM) {
            return Err(StreamError::NotAStream);
        }
        Self::new(None, fd).map_err(|source| StreamError::Watch { source })
    }

    fn new(path: Option<PathBuf>, socket: OwnedFd) -> io::Result<Self> {
        let (epoll, retry) = (epoll::create(CreateFlags::CLOEXEC)?, TimerSource::new()?);
        epoll::add(&epoll, &retry, EventData::new_u64(0), EventFlags::IN | EventFlags::ET)?;
        let stream = Self {
            path,
            epoll,
            retry,
            connected: AtomicBool::new(false),
            connection: Mutex::new(Connection { input: vec![0; INPUT], ..Connection::default() }),
        };
        stream.use_socket(&mut stream.connection(), socket)?;
        Ok(stream)
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn use_socket(&self, connection: &mut Connection, socket: OwnedFd) -> io::Result<()> {
        // Edges of its own: the one that watches this epoll sees each.
        let interest = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let socket = HostStream::owned(socket)?;
        epoll::add(&self.epoll, &socket, EventData::new_u64(1), interest)?;
        connection.socket = Some(socket);
        self.connected.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// The peer is gone. What it had not sent in full, or not yet received, is lost.
    fn disconnect(&self, connection: &mut Connection) {
        // Closed, it is not watched any more.
        connection.socket = None;
        (connection.taken, connection.filled, connection.sent) = (0, 0, 0);
        connection.output = Vec::new();
        self.connected.store(false, Ordering::Relaxed);
        self.try_later(connection);
    }

    fn try_later(&self, connection: &mut Connection) {
        if self.path.is_some() {
            connection.retry_at = Instant::now().checked_add(RETRY);
            // Without a timer, packets of the guest's lead to the next attempt.
            let _ = self.retry.set(RETRY);
        }
    }

    /// Connects anew, if it is time.
    fn reconnect(&self, connection: &mut Connection) {
        let Some(path) = self.path.as_deref().filter(|_| connection.socket.is_none()) else { return };
        if connection.retry_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        match connect(path).and_then(|socket| self.use_socket(connection, socket)) {
            Ok(()) => connection.retry_at = None,
            Err(_) => self.try_later(connection),
        }
    }
}

fn connect(path: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

/// What comes next of what the peer has sent.
enum Next {
    /// A frame, at these bytes of the room.
    Frame(std::ops::Range<usize>),
    /// It is not there in full.
    More,
    /// The peer does not speak this protocol.
    Nonsense,
}

impl Connection {
    fn next(&mut self) -> Next {
        let waiting = self.input.get(self.taken..self.filled).unwrap_or_default();
        let Some((length, rest)) = waiting.split_first_chunk::<LENGTH>() else { return Next::More };
        let length = u32::from_be_bytes(*length) as usize;
        if length > MAX_FRAME {
            return Next::Nonsense;
        }
        if rest.len() < length {
            return Next::More;
        }
        let start = self.taken + LENGTH;
        self.taken = start + length;
        Next::Frame(start..self.taken)
    }

    /// Reads what there is. `None` if the peer is gone.
    fn fill(&mut self) -> Option<io::Result<()>> {
        // At most one frame that is not there in full moves.
        self.input.copy_within(self.taken..self.filled, 0);
        (self.taken, self.filled) = (0, self.filled - self.taken);
        let (socket, room) = (self.socket.as_ref()?, self.input.get_mut(self.filled..)?);
        match read_again(|| socket.read(room)) {
            Ok(0) => None,
            Ok(read) => {
                self.filled += read;
                Some(Ok(()))
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => Some(Err(e)),
            Err(_) => None,
        }
    }

    /// Writes what waits, as far as the peer takes it. `None` if the peer is gone.
    fn drain(&mut self) -> Option<()> {
        let socket = self.socket.as_ref()?;
        while let Some(rest) = self.output.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match read_again(|| socket.write(rest)) {
                Ok(0) => return None,
                Ok(sent) => self.sent += sent,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Some(()),
                Err(_) => return None,
            }
        }
        self.output.clear();
        self.sent = 0;
        Some(())
    }
}

fn read_again(mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
    loop {
        match call() {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl NetIo for StreamSocket {
    fn fd(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::none()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        if offloads == Offloads::none() { Ok(()) } else { Err(io::ErrorKind::Unsupported.into()) }
    }

    fn set_active(&self, _: bool) -> io::Result<()> {
        // What the peer sends meanwhile waits.
        Ok(())
    }

    fn is_connected(&self) -> bool {
        self.connected.load(Ordering::Relaxed)
    }

    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
        let mut connection = self.connection();
        loop {
            match connection.next() {
                // To be dropped, and to count as one of a turn: a peer may send no others.
                Next::Frame(at) if (at.len() as u64) < ETHERNET_HEADER => return Ok(0),
                Next::Frame(at) => {
                    let frame = connection.input.get(at).unwrap_or_default();
                    mem.scatter(to.take(HEADER_LEN as u64), &[0; HEADER_LEN])?;
                    mem.scatter(to.skip(HEADER_LEN as u64), frame)?;
                    return Ok(HEADER_LEN + frame.len());
                }
                Next::Nonsense => self.disconnect(&mut connection),
                Next::More => match connection.fill() {
                    Some(read) => read?,
                    None => {
                        if connection.socket.is_some() {
                            self.disconnect(&mut connection);
                        }
                        return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
                    }
                },
            }
        }
    }

    fn send(&self, mem: &Dma, _: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError> {
        let mut connection = self.connection();
        if connection.output.len() - connection.sent >= OUTPUT {
            let drained = connection.drain();
            if drained.is_some() && connection.output.len() - connection.sent >= OUTPUT {
                return Err(io::Error::from(io::ErrorKind::WouldBlock).into());
            }
            if drained.is_none() {
                self.disconnect(&mut connection);
            }
        }
        if connection.socket.is_none() {
            return Err(io::Error::from(io::ErrorKind::NotConnected).into());
        }
        // The card has checked that it is no longer than a packet can be.
        let len = from.len() as usize;
        let sent = std::mem::take(&mut connection.sent);
        connection.output.drain(..sent);
        let start = connection.output.len();
        connection.output.extend((len as u32).to_be_bytes());
        connection.output.resize(start + LENGTH + len, 0);
        let to = connection.output.get_mut(start + LENGTH..).unwrap_or_default();
        let copied = mem.gather(from, to);
        if copied.is_err() {
            connection.output.truncate(start);
        }
        copied.map(drop).map_err(DmaIoError::from)
    }

    fn flush(&self) -> Result<(), Unsent> {
        let mut connection = self.connection();
        self.reconnect(&mut connection);
        if connection.socket.is_some() && connection.drain().is_none() {
            // What the peer has not taken was on the wire: like on any other, packets get lost.
            self.disconnect(&mut connection);
        }
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[
            Syscall("close"),
            Syscall("connect"),
            Syscall("epoll_ctl"),
            Syscall("eventfd2"),
            Syscall("fcntl"),
            Syscall("fstat"),
            Syscall("recvfrom"),
            Syscall("sendto"),
            Syscall("socket"),
            Syscall("timerfd_create"),
            Syscall("timerfd_settime"),
            Syscall("write"),
        ]
    }
}

#[cfg(test)]
mod tests;
