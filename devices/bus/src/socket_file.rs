//! The file of a Unix socket that listens, from its making to its removal.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// How long another process may take to make a socket in the same folder.
const PATIENCE: Duration = Duration::from_secs(1);

/// The file of a Unix socket that listens: removed at the end, unless another one has taken its place by then.
///
/// ```
/// use std::os::unix::net::UnixStream;
/// use ossature_bus::SocketFile;
///
/// # let folder = std::env::temp_dir().join(format!("ossature-socket-{}", std::process::id()));
/// # std::fs::create_dir_all(&folder)?;
/// let path = folder.join("socket");
/// let (listener, file) = SocketFile::bind(&path)?;
/// UnixStream::connect(&path)?;
/// drop((listener, file));
/// assert!(!path.exists());
/// # std::fs::remove_dir_all(&folder)?;
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct SocketFile {
    path: PathBuf,
    /// Which file it is: device and inode.
    identity: (u64, u64),
}

impl SocketFile {
    /// A listening socket at `path`. A socket that a process has left there which was killed is replaced; anything else
    /// that is in the way is an error (`AddrInUse`) that says what it is. Another process that is making a socket in the
    /// same folder is waited for, up to a second.
    pub fn bind(path: impl AsRef<Path>) -> io::Result<(UnixListener, Self)> {
        Self::bind_within(path.as_ref(), PATIENCE)
    }

    fn bind_within(path: &Path, patience: Duration) -> io::Result<(UnixListener, Self)> {
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
        Ok((listener, Self::of(path)?))
    }

    /// The file of a socket that has just been bound to `path`, whatever its type. Where the process goes later does not
    /// matter.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        Ok(Self { path: std::path::absolute(path)?, identity: identity(path)? })
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

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
