//! A disk whose sectors are the bytes of a file or of a block device, in order.

mod error;
pub(crate) mod space;

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_bus::{DeviceError, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};

use crate::{Disk, DiskIo, EngineSetup, SyncEngine, sys};
pub use error::DiskError;

/// What a disk file is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// The guest reads and writes; no other program may use the file meanwhile.
    ReadWrite,
    /// The guest only reads; others may read too.
    ReadOnly,
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
/// use ossature_block::{Disk, OpenMode, RawFile};
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
    capacity: AtomicU64,
    physical_block: u32,
    is_device: bool,
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
        let read_only = mode == OpenMode::ReadWrite
            && file.metadata().is_ok_and(|meta| meta.file_type().is_file() && meta.mode() & 0o222 == 0);
        if read_only {
            return Err(DiskError::ReadOnlyFile { path: path.to_owned() });
        }
        Self::new(file, path, mode)
    }

    /// Takes a file or block device that is open already, for processes that may not open any: for reading, and for
    /// writing too with [`OpenMode::ReadWrite`], but not with `O_APPEND`. Errors call it `descriptor N`.
    ///
    /// The lock belongs to the open file description: a copy of the descriptor, also one in another process, is not
    /// kept out by it.
    ///
    /// ```
    /// use ossature_block::{Disk, OpenMode, RawFile};
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
        let flags = sys::status_flags(&file).map_err(|source| DiskError::Io {
            path: path.clone(),
            action: "inspect",
            source,
        })?;
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
        Self::new(file, &path, mode)
    }

    fn new(mut file: File, path: &Path, mode: OpenMode) -> Result<Self, DiskError> {
        let io = |action| move |source| DiskError::Io { path: path.to_owned(), action, source };
        let meta = file.metadata().map_err(io("inspect"))?;
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotAFile { path: path.to_owned(), found: name_of(kind) });
        }
        // Where a block device ends, only a seek tells.
        let capacity = file.seek(SeekFrom::End(0)).map_err(io("measure"))?;
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
        let (path, capacity) = (path.to_owned(), AtomicU64::new(capacity));
        Ok(Self { file, path, capacity, physical_block, is_device: kind.is_block_device(), mode })
    }

    fn try_lock(&self) -> Result<(), DiskError> {
        let Self { file, path, mode, .. } = self;
        let io = |action| self.io_error(action);
        sys::lock_file(file, *mode == OpenMode::ReadWrite).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::InUse { path: path.clone() },
            _ => io("lock")(source),
        })?;
        // Whoever had it before may have changed it.
        let (len, before) = (self.measure()?, self.capacity());
        if len != before {
            sys::unlock_file(file).map_err(io("unlock"))?;
            return Err(DiskError::Resized { path: path.clone(), len, before });
        }
        Ok(())
    }

    fn io_error(&self, action: &'static str) -> impl FnOnce(io::Error) -> DiskError + use<> {
        let path = self.path.clone();
        move |source| DiskError::Io { path, action, source }
    }

    fn measure(&self) -> Result<u64, DiskError> {
        let mut end = &self.file;
        end.seek(SeekFrom::End(0)).map_err(self.io_error("measure"))
    }
}

/// The error of a device that cannot go on with its disk.
pub(crate) fn device_error(error: DiskError) -> DeviceError {
    let reason = DeviceError::new(error.to_string());
    match error {
        DiskError::Io { source, .. } => reason.with_source(source),
        _ => reason,
    }
}

pub(crate) fn open_error(path: &Path, mode: OpenMode, source: io::Error) -> DiskError {
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

pub(crate) fn name_of(kind: std::fs::FileType) -> &'static str {
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
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        mem.preadv(&self.file, to, offset)
    }

    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        mem.pwritev(&self.file, from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        space::discard(&self.file, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        space::write_zeroes(&self.file, offset, len, unmap)
    }
}

impl Disk for RawFile {
    type Engine = SyncEngine<Self>;

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.mode == OpenMode::ReadOnly
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn physical_block(&self) -> u32 {
        self.physical_block
    }

    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(SyncEngine::new(Arc::clone(self)))
    }

    /// A file grows or shrinks; a block device has to have the size already.
    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        let len = self.measure()?;
        if capacity == 0 {
            return Err(DiskError::Empty { path: self.path.clone() });
        }
        if capacity % 512 != 0 {
            return Err(DiskError::Tail { path: self.path.clone(), len: capacity });
        }
        if len != capacity && self.is_device {
            return Err(DiskError::Resized { path: self.path.clone(), len, before: capacity });
        }
        if len != capacity {
            self.file.set_len(capacity).map_err(self.io_error("resize"))?;
        }
        self.capacity.store(capacity, Ordering::Relaxed);
        Ok(())
    }

    fn lock(&self) -> Result<(), DeviceError> {
        self.try_lock().map_err(device_error)
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        sys::unlock_file(&self.file).map_err(|source| {
            device_error(DiskError::Io { path: self.path.clone(), action: "unlock", source })
        })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[
            Syscall("preadv"),
            Syscall("pwritev"),
            Syscall("pwrite64"),
            Syscall("fdatasync"),
            Syscall("fallocate"),
            Syscall("ftruncate"),
            Syscall("fcntl"),
            Syscall("lseek"),
        ]
    }
}

#[cfg(test)]
mod tests;
