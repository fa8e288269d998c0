//! A disk whose sectors are the bytes of a file or of a block device, in order.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ossature_bus::{DeviceError, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};

use super::DiskIo;
use crate::sys;

/// What a disk file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The guest reads and writes; no other program may use the file meanwhile.
    ReadWrite,
    /// The guest only reads; others may read too.
    ReadOnly,
}

/// A disk file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// There is no such file.
    #[error("disk {path:?} does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a folder, a pipe, a terminal or the like.
    #[error("disk {path:?} is {found}; a disk is a file or a block device")]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// This user may not open it.
    #[error("disk {path:?}: no permission to {}", match mode {
        OpenMode::ReadWrite => "read and write it; open it read-only or change its mode",
        OpenMode::ReadOnly => "read it",
    })]
    Permission {
        /// The file.
        path: PathBuf,
        /// How it was to be opened.
        mode: OpenMode,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is marked read-only, or its file system is, and it was to be opened read-write.
    #[error("disk {path:?} is read-only; open it read-only, or make it writable")]
    ReadOnlyFile {
        /// The file.
        path: PathBuf,
    },
    /// Another virtual machine has it, or another device of this one.
    #[error(
        "disk {path:?} is in use by another process, or by another disk of this one, which has locked it"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It has no sector.
    #[error("disk {path:?} is empty; give it a size, a multiple of 512 bytes")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The last sector is not whole.
    #[error("disk {path:?} is {len} bytes long, not a multiple of 512: pad it to {}", len.next_multiple_of(512))]
    Tail {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// Its size has changed since it was opened.
    #[error("disk {path:?} is {len} bytes long, and was {before} when it was opened")]
    Resized {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// Its length when it was opened.
        before: u64,
    },
    /// A descriptor that was opened in a way that a disk cannot be used in.
    #[error("disk {path:?} is {found}; open it {wanted}")]
    Descriptor {
        /// `descriptor N`.
        path: PathBuf,
        /// How it was opened.
        found: &'static str,
        /// How it has to be opened.
        wanted: &'static str,
    },
    /// Anything else.
    #[error("disk {path:?}: cannot {action} it: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}

/// A raw disk file, or a block device, as it is: whatever its first bytes look like, its format is never
/// guessed.
///
/// Reads and writes go through the host's page cache, synchronously: they block the thread that runs the
/// device's worker, and with the shared runtime all workers on it. Where that matters, give the device a
/// thread of its own.
///
/// While a device works with it the whole file is locked with an open-file-description lock (`F_OFD_SETLK`, fcntl(2)),
/// exclusive for read-write and shared for read-only; a paused machine holds none. The lock is advisory: it keeps out
/// every program that locks its disks in this way or with POSIX record locks.
///
/// ```
/// use ossature_virtio::blk::{DiskIo, OpenMode, RawFile};
///
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("root.img");
/// std::fs::File::create(&path)?.set_len(1 << 20)?;
/// let (one, other) = (RawFile::open(&path, OpenMode::ReadWrite)?, RawFile::open(&path, OpenMode::ReadOnly)?);
/// one.lock()?;
/// assert!(other.lock().unwrap_err().to_string().contains("is in use by another process"));
/// one.unlock()?;
/// other.lock()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct RawFile {
    file: File,
    path: PathBuf,
    capacity: u64,
    physical_block: u32,
    mode: OpenMode,
}

impl RawFile {
    /// Opens `path`.
    ///
    /// A file without any write permission is refused for [`OpenMode::ReadWrite`] even where the process may override
    /// permissions: it was marked as not to be written.
    pub fn open(path: impl AsRef<Path>, mode: OpenMode) -> Result<Self, DiskError> {
        let path = path.as_ref();
        // Opening a pipe without O_NONBLOCK would wait for its other end.
        let file = OpenOptions::new()
            .read(true)
            .write(mode == OpenMode::ReadWrite)
            .custom_flags(libc::O_NONBLOCK)
            .open(path)
            .map_err(|e| open_error(path, mode, e))?;
        let meta = inspect(&file, path)?;
        if mode == OpenMode::ReadWrite && meta.is_file() && meta.mode() & 0o222 == 0 {
            return Err(DiskError::ReadOnlyFile { path: path.to_owned() });
        }
        Self::new(file, &meta, path, mode)
    }

    /// Takes a file or block device that is open already, for processes that may not open any: for reading, and for
    /// writing too with [`OpenMode::ReadWrite`], but not with `O_APPEND`. Errors call it `descriptor N`.
    ///
    /// The lock belongs to the open file description: a copy of the descriptor, also one in another process, is not
    /// kept out by it.
    ///
    /// ```
    /// use ossature_virtio::blk::{DiskIo, OpenMode, RawFile};
    ///
    /// let file = tempfile::tempfile()?;
    /// file.set_len(1 << 20)?;
    /// let disk = RawFile::from_fd(file, OpenMode::ReadWrite)?;
    /// assert_eq!(disk.capacity(), 1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_fd(fd: impl Into<OwnedFd>, mode: OpenMode) -> Result<Self, DiskError> {
        let file = File::from(fd.into());
        let path = PathBuf::from(format!("descriptor {}", file.as_raw_fd()));
        let flags = sys::status_flags(&file).map_err(io(&path, "inspect"))?;
        let found = match flags & libc::O_ACCMODE {
            _ if flags & libc::O_PATH != 0 => Some("only a place in the file system (O_PATH)"),
            libc::O_WRONLY => Some("open for writing only"),
            libc::O_RDONLY if mode == OpenMode::ReadWrite => Some("open for reading only"),
            _ if mode == OpenMode::ReadWrite && flags & libc::O_APPEND != 0 => {
                Some("open for appending (O_APPEND)")
            }
            _ => None,
        };
        if let Some(found) = found {
            let wanted = match mode {
                OpenMode::ReadWrite => "for reading and writing (O_RDWR)",
                OpenMode::ReadOnly => "for reading (O_RDONLY)",
            };
            return Err(DiskError::Descriptor { path, found, wanted });
        }
        let meta = inspect(&file, &path)?;
        Self::new(file, &meta, &path, mode)
    }

    fn new(mut file: File, meta: &Metadata, path: &Path, mode: OpenMode) -> Result<Self, DiskError> {
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotAFile { path: path.to_owned(), found: name_of(kind) });
        }
        // Where a block device ends, only a seek tells.
        let capacity = if kind.is_file() { Ok(meta.len()) } else { file.seek(SeekFrom::End(0)) };
        let capacity = capacity.map_err(io(path, "measure"))?;
        if capacity == 0 {
            return Err(DiskError::Empty { path: path.to_owned() });
        }
        if capacity % 512 != 0 {
            return Err(DiskError::Tail { path: path.to_owned(), len: capacity });
        }
        let physical_block = u32::try_from(meta.blksize())
            .ok()
            .filter(|size| size.is_power_of_two() && (512..=65536).contains(size))
            .unwrap_or(512);
        Ok(Self { file, path: path.to_owned(), capacity, physical_block, mode })
    }

    fn try_lock(&self) -> Result<(), DiskError> {
        let Self { file, path, capacity, mode, .. } = self;
        sys::lock_file(file, *mode == OpenMode::ReadWrite).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::InUse { path: path.clone() },
            _ => io(path, "lock")(source),
        })?;
        // Whoever had it before may have changed it.
        let mut end = file;
        let len = end.seek(SeekFrom::End(0)).map_err(io(path, "measure"))?;
        if len != *capacity {
            sys::unlock_file(file).map_err(io(path, "unlock"))?;
            return Err(DiskError::Resized { path: path.clone(), len, before: *capacity });
        }
        Ok(())
    }
}

/// The error of a device that cannot go on with its disk.
fn device_error(error: DiskError) -> DeviceError {
    let reason = DeviceError::new(error.to_string());
    match error {
        DiskError::Io { source, .. } => reason.with_source(source),
        _ => reason,
    }
}

fn inspect(file: &File, path: &Path) -> Result<Metadata, DiskError> {
    file.metadata().map_err(io(path, "inspect"))
}

fn io(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<> {
    let path = path.to_owned();
    move |source| DiskError::Io { path, action, source }
}

fn open_error(path: &Path, mode: OpenMode, source: io::Error) -> DiskError {
    let path = path.to_owned();
    match source.raw_os_error() {
        Some(libc::ENOENT) => DiskError::Missing { path },
        Some(libc::EISDIR) => DiskError::NotAFile { path, found: "a folder" },
        Some(libc::EROFS | libc::ETXTBSY) => DiskError::ReadOnlyFile { path },
        Some(libc::EACCES | libc::EPERM) => DiskError::Permission { path, mode, source },
        Some(libc::ENXIO) => DiskError::NotAFile { path, found: "a socket or a device without a driver" },
        _ => DiskError::Io { path, action: "open", source },
    }
}

fn name_of(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a folder"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a character device"
    }
}

impl DiskIo for RawFile {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read_only(&self) -> bool {
        self.mode == OpenMode::ReadOnly
    }

    fn physical_block(&self) -> u32 {
        self.physical_block
    }

    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        mem.preadv(&self.file, to, offset)
    }

    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        mem.pwritev(&self.file, from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn lock(&self) -> Result<(), DeviceError> {
        self.try_lock().map_err(device_error)
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        sys::unlock_file(&self.file).map_err(io(&self.path, "unlock")).map_err(device_error)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("preadv"), Syscall("pwritev"), Syscall("fdatasync"), Syscall("fcntl"), Syscall("lseek")]
    }
}

#[cfg(test)]
mod tests;
