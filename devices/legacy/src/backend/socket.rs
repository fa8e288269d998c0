//! A Unix stream socket as a serial line: one that listens, and has one client at a time, or one client alone.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::line::{Line, Pollable, Pollables};

/// How long another process may take to make a socket in the same folder.
const PATIENCE: Duration = Duration::from_secs(1);

pub(crate) struct SocketLine {
    /// The socket's file, if it was made for this line.
    _file: Option<SocketFile>,
    /// Where clients come from, if there is more than one.
    listener: Option<Arc<UnixListener>>,
    client: Option<Arc<UnixStream>>,
}

impl SocketLine {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = SocketFile::bind(path, PATIENCE)?;
        Self::listening(listener, Some(file))
    }

    /// On a socket that listens already.
    pub(crate) fn open(listener: UnixListener) -> io::Result<Self> {
        Self::listening(listener, None)
    }

    fn listening(listener: UnixListener, file: Option<SocketFile>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { _file: file, listener: Some(Arc::new(listener)), client: None })
    }

    pub(crate) fn connected(client: UnixStream) -> io::Result<Self> {
        client.set_nonblocking(true)?;
        Ok(Self { _file: None, listener: None, client: Some(Arc::new(client)) })
    }

    /// The client, or the one that waits to be it.
    fn client(&mut self) -> io::Result<&UnixStream> {
        if let (None, Some(listener)) = (&self.client, &self.listener) {
            let (stream, _) = listener.accept()?;
            stream.set_nonblocking(true)?;
            self.client = Some(Arc::new(stream));
        }
        self.client.as_deref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }
}

impl Line for SocketLine {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Ok(mut client) = self.client() else { return Err(io::ErrorKind::NotConnected.into()) };
        let result = client.write(bytes);
        if matches!(&result, Err(e) if !matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted))
        {
            // It has gone; so is what was for it.
            self.client = None;
            return Err(io::ErrorKind::NotConnected.into());
        }
        result
    }

    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.client()?.read(buf) {
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Err(e),
            Ok(n) if n > 0 => Ok(n),
            // No other comes; it may still take output.
            _ if self.listener.is_none() => Ok(0),
            // The end of a client is not the end of the line.
            _ => {
                self.client = None;
                Err(io::ErrorKind::WouldBlock.into())
            }
        }
    }

    fn watch(&self, input: bool, output: bool) -> Pollables {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, input);
        flags.set(PollFlags::OUT, output);
        match (&self.client, &self.listener) {
            _ if flags.is_empty() => Pollables::new(),
            (Some(client), _) => vec![(client.clone() as Pollable, flags)],
            (None, Some(listener)) => vec![(listener.clone(), PollFlags::IN)],
            (None, None) => Pollables::new(),
        }
    }

    fn needs_loop(&self) -> bool {
        true
    }

    fn is_terminal(&self) -> bool {
        false
    }
}

/// The file of a socket that listens: removed at the end, unless another one has taken its place by then.
struct SocketFile {
    path: PathBuf,
    /// Which file it is: device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// A listening socket at `path`. What a process that was killed has left there is replaced.
    fn bind(path: &Path, patience: Duration) -> io::Result<(UnixListener, Self)> {
        // One process at a time, from the first step: a socket that is bound and does not listen yet is not to be taken
        // for a leftover.
        let lock = lock_folder(path, patience);
        if lock.as_ref().is_err_and(|e| e.kind() == ErrorKind::WouldBlock) {
            return in_use("another process is making a socket there");
        }
        let listener = match (UnixListener::bind(path), &lock) {
            (Err(e), Ok(_)) if e.kind() == ErrorKind::AddrInUse => Self::replace(path)?,
            // Without the lock nothing is replaced.
            (bound, _) => bound?,
        };
        let identity = identity(path)?;
        Ok((listener, Self { path: path.to_owned(), identity }))
    }

    /// The same in place of a leftover.
    fn replace(path: &Path) -> io::Result<UnixListener> {
        if !fs::symlink_metadata(path)?.file_type().is_socket() {
            return in_use("there is a file of this name, and it is not a socket");
        }
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let client = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        match rustix::net::connect(&client, &SocketAddrUnix::new(path)?) {
            Err(Errno::CONNREFUSED) => fs::remove_file(path)?,
            Err(Errno::NOENT) => {}
            // `AGAIN`: so many wait already.
            Ok(()) | Err(Errno::AGAIN) => return in_use("another process listens on this socket"),
            Err(e) => return Err(e.into()),
        }
        UnixListener::bind(path)
    }
}

fn in_use<T>(what: &str) -> io::Result<T> {
    Err(io::Error::new(ErrorKind::AddrInUse, what))
}

/// Locks the folder that `path` is in, until the result is dropped. `WouldBlock` if another process has it for longer than
/// `patience`, another error if it cannot be locked: the folder may not be read, or its file system has no locks.
fn lock_folder(path: &Path, patience: Duration) -> io::Result<File> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = File::open(folder.unwrap_or(Path::new(".")))?;
    let deadline = Instant::now() + patience;
    loop {
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            other => return other.map(|()| folder).map_err(io::Error::from),
        }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Somebody may have removed it by now.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let file = fs::symlink_metadata(path)?;
    Ok((file.dev(), file.ino()))
}

#[cfg(test)]
mod tests;
