//! A snapshot at the other end of a socket.
//!
//! The server begins: `OSSAPAGE`, the version of the protocol, 1, in 4 bytes, 4 bytes of 0, and the size of the snapshot
//! in 8. Then the client asks, as often as it wants: an offset in 8 bytes and a length in 4, at most 2 MiB. The server
//! answers each with 4 bytes: 0, and the bytes follow; 1, and they are all zero, and do not follow; or 2, and it cannot
//! read them. Numbers are little-endian.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use super::source::SnapshotSource;

const MAGIC: [u8; 8] = *b"OSSAPAGE";
const VERSION: u32 = 1;
/// The most that is asked for at once.
const MAX_READ: usize = 2 << 20;
/// How long a peer may take for one answer.
const PATIENCE: Duration = Duration::from_secs(30);

const BYTES: u32 = 0;
const ZEROS: u32 = 1;
const UNREADABLE: u32 = 2;

/// A snapshot that a peer [serves](serve_snapshot) over a socket. A peer that takes longer than 30 seconds for an answer, of at
/// most 2 MiB, is an error.
///
/// Nothing proves who the peer is, and nothing is encrypted: both are up to the socket, such as a Unix socket in a folder
/// that others cannot reach, or a tunnel. What the peer sends is checked as a file from elsewhere is.
///
/// ```
/// use std::os::unix::net::UnixListener;
/// use ossature_core::machine::{Machine, RemoteSnapshot, Snapshot, serve_snapshot};
/// use ossature_core::scripted::{Script, Scripted};
/// use ossature_memory::vm_memory::GuestAddress;
///
/// # let folder = tempfile::tempdir()?;
/// # let (path, socket) = (folder.path().join("guest.snap"), folder.path().join("pages.sock"));
/// # let machine = Machine::builder("first").build(&Scripted::new([Script::new()]))?;
/// # machine.ram().dma().write(GuestAddress(0x1000), b"kept")?;
/// # machine.snapshot(&path)?;
/// // On the host that has the snapshot:
/// let listener = UnixListener::bind(&socket)?;
/// let server = std::thread::spawn(move || serve_snapshot(std::fs::File::open(path)?, listener.accept()?.0));
///
/// // On the host that is to have the guest: it starts before its memory is there.
/// let snapshot = Snapshot::from_source(RemoteSnapshot::unix(&socket)?)?;
/// # if ossature_memory::Userfault::open(ossature_memory::UserfaultMode::Missing).is_err() { return Ok(()) }
/// let machine = Machine::builder("second").restore(snapshot).build(&Scripted::new([Script::new()]))?;
/// assert_eq!(machine.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x1000))?, *b"kept");
/// drop(machine);
/// server.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RemoteSnapshot<S> {
    stream: S,
    size: u64,
    /// After an error, nobody knows what comes next.
    broken: bool,
    patience: Duration,
}

impl RemoteSnapshot<UnixStream> {
    /// Asks the server behind a Unix socket.
    pub fn unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Self::over(stream)
    }
}

impl RemoteSnapshot<TcpStream> {
    /// Asks the server at an address.
    pub fn tcp(addr: impl ToSocketAddrs) -> io::Result<Self> {
        let mut last = io::Error::new(io::ErrorKind::NotFound, "no address");
        for addr in addr.to_socket_addrs()? {
            match TcpStream::connect_timeout(&addr, PATIENCE) {
                Ok(stream) => {
                    stream.set_nodelay(true)?;
                    stream.set_read_timeout(Some(PATIENCE))?;
                    stream.set_write_timeout(Some(PATIENCE))?;
                    return Self::over(stream);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

impl<S: Read + Write> RemoteSnapshot<S> {
    /// Asks the server at the other end of a stream, which has a time limit of its own.
    pub fn over(mut stream: S) -> io::Result<Self> {
        if read::<8>(&mut stream)? != MAGIC {
            return Err(invalid("it does not serve a snapshot"));
        }
        let version = u32::from_le_bytes(read(&mut stream)?);
        if version != VERSION {
            return Err(invalid("it speaks another version of the protocol"));
        }
        let _reserved: [u8; 4] = read(&mut stream)?;
        let size = u64::from_le_bytes(read(&mut stream)?);
        Ok(Self { stream, size, broken: false, patience: PATIENCE })
    }

    fn ask(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let mut question = offset.to_le_bytes().to_vec();
        question.extend((bytes.len() as u32).to_le_bytes());
        self.stream.write_all(&question)?;
        self.stream.flush()?;
        match u32::from_le_bytes(read(&mut self.stream)?) {
            BYTES => read_within(&mut self.stream, bytes, self.patience),
            ZEROS => {
                bytes.fill(0);
                Ok(())
            }
            UNREADABLE => Err(io::Error::other("its server cannot read it")),
            _ => Err(invalid("its server does not keep to the protocol")),
        }
    }
}

impl<S: Read + Write + Send> SnapshotSource for RemoteSnapshot<S> {
    fn size(&mut self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        for (piece, at) in bytes.chunks_mut(MAX_READ).zip((offset..).step_by(MAX_READ)) {
            if self.broken {
                return Err(io::ErrorKind::NotConnected.into());
            }
            self.ask(at, piece).map_err(|error| {
                self.broken = true;
                // What a time limit of a socket is called.
                if error.kind() == io::ErrorKind::WouldBlock { io::ErrorKind::TimedOut.into() } else { error }
            })?;
        }
        Ok(())
    }
}

/// Serves a snapshot to the [client](RemoteSnapshot) at the other end of a stream until it hangs up. A server of several
/// clients calls it on a thread for each.
pub fn serve_snapshot(mut source: impl SnapshotSource, mut stream: impl Read + Write) -> io::Result<()> {
    let mut hello = MAGIC.to_vec();
    hello.extend(VERSION.to_le_bytes());
    hello.extend([0; 4]);
    hello.extend(source.size()?.to_le_bytes());
    stream.write_all(&hello)?;
    stream.flush()?;
    let mut buffer = Vec::new();
    loop {
        let offset = match read(&mut stream) {
            Ok(offset) => u64::from_le_bytes(offset),
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            Err(e) => return Err(e),
        };
        let len = u32::from_le_bytes(read(&mut stream)?) as usize;
        if len > MAX_READ {
            return Err(invalid("the client asks for too much at once"));
        }
        buffer.resize(len, 0);
        if let Err(error) = source.fetch(offset, &mut buffer) {
            stream.write_all(&UNREADABLE.to_le_bytes())?;
            stream.flush()?;
            return Err(error);
        }
        if buffer.iter().all(|byte| *byte == 0) {
            stream.write_all(&ZEROS.to_le_bytes())?;
        } else {
            stream.write_all(&BYTES.to_le_bytes())?;
            stream.write_all(&buffer)?;
        }
        stream.flush()?;
    }
}

/// Fills `bytes`, or fails: a peer may not keep a guest waiting by one byte at a time.
fn read_within(stream: &mut impl Read, mut bytes: &mut [u8], patience: Duration) -> io::Result<()> {
    let since = Instant::now();
    while !bytes.is_empty() {
        match stream.read(bytes) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(len) => bytes = bytes.get_mut(len..).unwrap_or_default(),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        if !bytes.is_empty() && since.elapsed() >= patience {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
    Ok(())
}

fn read<const N: usize>(stream: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
