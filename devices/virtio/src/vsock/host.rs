//! Where a socket device meets the host: a listening Unix socket, and a way to connect to what serves a port.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use ossature_bus::SocketFile;
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::hub::MAX_ALLOC;
use super::packet::Kind;
use crate::sys;

/// Connections that wait to be taken.
const BACKLOG: i32 = 1024;
/// What a path may have in bytes: a socket's address has 108, and the longest suffix is `_4294967295` with its NUL.
const MAX_PATH: usize = 108 - 12;

/// Connects the guest to what serves a port of the host.
pub trait Connect: Send + 'static {
    /// Connects to whoever serves `port`, without waiting. `WouldBlock` says that it is busy: the device tries again for a
    /// while. After any other error the guest is refused.
    fn connect(&self, port: u32) -> io::Result<OwnedFd>;
}

impl<F: Fn(u32) -> io::Result<OwnedFd> + Send + 'static> Connect for F {
    fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        self(port)
    }
}

/// Why there is no [`HostSocket`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostSocketError {
    /// Ports are appended to the path, and the longest has to be a socket's address, too.
    #[error("the path {path:?} is longer than {MAX_PATH} bytes")]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// Somebody is listening there.
    #[error("{path:?} is in use: a running program listens there")]
    InUse {
        /// The path.
        path: PathBuf,
    },
    /// There is something else, which stays.
    #[error("{path:?} exists and is not a socket")]
    NotASocket {
        /// The path.
        path: PathBuf,
    },
    /// The host's kernel refuses.
    #[error("cannot listen on {path:?}: {source}")]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// The host's side of a socket device for one type of socket: streams, or sequential packets.
///
/// A program of the host connects to the listening socket and says which port of the guest it wants: `CONNECT 1234` and a
/// newline. Once the guest has accepted it reads `OK` with a port of the host's and a newline, and what follows is the
/// connection. If the guest refuses, or the text is another, the connection ends.
///
/// What the guest connects to is up to a [`Connect`]: for a socket at `PATH`, port 1234 of the host is the socket
/// `PATH_1234`. If nobody listens there, the guest is refused.
///
/// With sequential packets it is the same, each text one message. Messages without bytes are not passed on, and neither is
/// `SEQ_EOR`: Unix sockets have no place for it.
pub struct HostSocket {
    listener: OwnedFd,
    kind: Kind,
    connect: Box<dyn Connect>,
    /// Removed in the end.
    _file: Option<SocketFile>,
}

impl HostSocket {
    /// Listens for streams on a Unix socket at `path`, which is removed when the device is dropped. One that a program
    /// left behind when it was killed is replaced.
    pub fn bind(path: impl Into<PathBuf>) -> Result<Self, HostSocketError> {
        Self::bind_kind(path.into(), Kind::Stream)
    }

    /// Listens for sequential packets (`SOCK_SEQPACKET`), as [`bind`](Self::bind).
    pub fn bind_seqpacket(path: impl Into<PathBuf>) -> Result<Self, HostSocketError> {
        Self::bind_kind(path.into(), Kind::SeqPacket)
    }

    /// On a Unix socket that listens already, for streams or sequential packets, and that nobody else accepts from. It
    /// becomes non-blocking.
    pub fn new(listener: impl Into<OwnedFd>, connect: impl Connect) -> io::Result<Self> {
        let listener = listener.into();
        let kind = match net::sockopt::socket_type(&listener)? {
            SocketType::STREAM => Kind::Stream,
            SocketType::SEQPACKET => Kind::SeqPacket,
            _ => return Err(io::Error::new(io::ErrorKind::InvalidInput, "no socket of streams or packets")),
        };
        sys::set_nonblocking(&listener)?;
        Ok(Self { listener, kind, connect: Box::new(connect), _file: None })
    }

    fn bind_kind(path: PathBuf, kind: Kind) -> Result<Self, HostSocketError> {
        if path.as_os_str().len() > MAX_PATH {
            return Err(HostSocketError::TooLong { path });
        }
        match listen(&path, kind) {
            Ok((listener, file)) => {
                let connect = Box::new(move |port| dial(&path, port, kind));
                Ok(Self { listener, kind, connect, _file: Some(file) })
            }
            Err(Refused::InUse) => Err(HostSocketError::InUse { path }),
            Err(Refused::NotASocket) => Err(HostSocketError::NotASocket { path }),
            Err(Refused::Io(source)) => Err(HostSocketError::Io { path, source }),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        self.kind
    }

    pub(super) fn listener(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// The next program that has connected.
    pub(super) fn accept(&self) -> io::Result<OwnedFd> {
        let socket = net::accept_with(&self.listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        self.make_room(&socket);
        Ok(socket)
    }

    /// A non-blocking connection to what serves `port`.
    pub(super) fn connect(&self, port: u32) -> io::Result<OwnedFd> {
        let socket = self.connect.connect(port)?;
        sys::set_nonblocking(&socket)?;
        self.make_room(&socket);
        Ok(socket)
    }

    /// A socket takes no message that is longer than its buffer. Of the guest's, none is longer than what it may send.
    fn make_room(&self, socket: &OwnedFd) {
        if self.kind == Kind::SeqPacket {
            // If the host does not allow it, a message that is too long ends its connection.
            let _ = net::sockopt::set_socket_send_buffer_size(socket, MAX_ALLOC);
        }
    }
}

impl fmt::Debug for HostSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HostSocket")
            .field("listener", &self.listener)
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

enum Refused {
    InUse,
    NotASocket,
    Io(io::Error),
}

impl From<Errno> for Refused {
    fn from(e: Errno) -> Self {
        Self::Io(e.into())
    }
}

fn unix_socket(kind: Kind) -> rustix::io::Result<OwnedFd> {
    let kind = match kind {
        Kind::Stream => SocketType::STREAM,
        Kind::SeqPacket => SocketType::SEQPACKET,
    };
    net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
}

fn listen(path: &Path, kind: Kind) -> Result<(OwnedFd, SocketFile), Refused> {
    let address = SocketAddrUnix::new(path)?;
    let socket = unix_socket(kind)?;
    match net::bind(&socket, &address) {
        Err(Errno::ADDRINUSE) => {
            remove_stale(path, &address, kind)?;
            net::bind(&socket, &address)?;
        }
        bound => bound?,
    }
    // Ours from here on, also if the rest fails.
    let file = SocketFile::of(path).map_err(Refused::Io)?;
    net::listen(&socket, BACKLOG)?;
    Ok((socket, file))
}

/// Removes a socket that nobody listens on.
fn remove_stale(path: &Path, address: &SocketAddrUnix, kind: Kind) -> Result<(), Refused> {
    let is_socket = fs::symlink_metadata(path).is_ok_and(|file| file.file_type().is_socket());
    if !is_socket {
        return Err(Refused::NotASocket);
    }
    match net::connect(unix_socket(kind)?, address) {
        Err(Errno::CONNREFUSED) => fs::remove_file(path).map_err(Refused::Io),
        // There is somebody, be it one who is busy, who offers another type, or who is not for us.
        _ => Err(Refused::InUse),
    }
}

fn dial(path: &Path, port: u32, kind: Kind) -> io::Result<OwnedFd> {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.extend_from_slice(format!("_{port}").as_bytes());
    let socket = unix_socket(kind)?;
    net::connect(&socket, &SocketAddrUnix::new(name)?)?;
    Ok(socket)
}
