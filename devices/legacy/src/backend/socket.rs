//! A Unix stream socket as a serial line: it listens, and has one client at a time.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::line::{Line, Pollable, Pollables};

pub(crate) struct SocketLine {
    _file: SocketFile,
    listener: Arc<UnixListener>,
    client: Option<Arc<UnixStream>>,
}

impl SocketLine {
    pub(crate) fn bind(path: &Path) -> io::Result<Self> {
        let (listener, file) = SocketFile::bind(path)?;
        listener.set_nonblocking(true)?;
        Ok(Self { _file: file, listener: Arc::new(listener), client: None })
    }

    /// The client, or the one that waits to be it.
    fn client(&mut self) -> io::Result<&UnixStream> {
        if self.client.is_none() {
            let (stream, _) = self.listener.accept()?;
            stream.set_nonblocking(true)?;
            self.client = Some(Arc::new(stream));
        }
        self.client.as_deref().ok_or_else(|| io::ErrorKind::WouldBlock.into())
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
        let fd: (Pollable, _) = match &self.client {
            _ if flags.is_empty() => return Pollables::new(),
            None => (self.listener.clone(), PollFlags::IN),
            Some(client) => (client.clone(), flags),
        };
        vec![fd]
    }

    fn needs_loop(&self) -> bool {
        true
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
    fn bind(path: &Path) -> io::Result<(UnixListener, Self)> {
        let listener = match UnixListener::bind(path) {
            Err(e) if e.kind() == ErrorKind::AddrInUse => Self::replace(path)?,
            other => other?,
        };
        let identity = identity(path)?;
        Ok((listener, Self { path: path.to_owned(), identity }))
    }

    fn replace(path: &Path) -> io::Result<UnixListener> {
        let in_use = |what| Err(io::Error::new(ErrorKind::AddrInUse, what));
        // One process at a time: what the other one has just made is not to be taken for a leftover.
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = File::open(folder.unwrap_or(Path::new(".")))?;
        match rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return in_use("another process is making a socket there"),
            other => other?,
        }
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
