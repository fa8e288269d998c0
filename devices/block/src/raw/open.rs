//! How a raw file is opened, measured, and refused.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use super::direct::Direct;
use super::{DiskError, EngineKind, OpenMode, RawFile, RawOptions};
use crate::sys;

impl RawFile {
    /// Opens `path`.
    ///
    /// A file without any write permission is refused for [`OpenMode::ReadWrite`] even where the process may override
    /// permissions: it was marked as not to be written.
    pub fn open(path: impl AsRef<Path>, options: impl Into<RawOptions>) -> Result<Self, DiskError> {
        let (path, options) = (path.as_ref(), options.into());
        let (file, meta) = open_file(path, options.mode)?;
        Self::new(file, meta, path, options)
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
    pub fn from_fd(fd: impl Into<OwnedFd>, options: impl Into<RawOptions>) -> Result<Self, DiskError> {
        let (file, options) = (File::from(fd.into()), options.into());
        let path = PathBuf::from(format!("descriptor {}", file.as_raw_fd()));
        check_descriptor(&file, &path, options.mode)?;
        let meta = inspect(&file, &path)?;
        Self::new(file, meta, &path, options)
    }

    fn new(mut file: File, meta: Metadata, path: &Path, options: RawOptions) -> Result<Self, DiskError> {
        let io = |action| move |source| DiskError::Io { path: path.to_owned(), action, source };
        let kind = meta.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::NotAFile { path: path.to_owned(), found: name_of(kind) });
        }
        let is_device = kind.is_block_device();
        // Otherwise O_NONBLOCK means nothing for a file, but io_uring would not wait for the disk.
        if options.engine == EngineKind::Uring {
            sys::set_blocking(&file).map_err(io("prepare"))?;
        }
        // Where a block device ends, only a seek tells.
        let capacity = if is_device { file.seek(SeekFrom::End(0)) } else { Ok(meta.len()) };
        let capacity = capacity.map_err(io("measure"))?;
        if capacity == 0 {
            return Err(DiskError::Empty { path: path.to_owned() });
        }
        if !capacity.is_multiple_of(512) {
            return Err(DiskError::Tail { path: path.to_owned(), len: capacity });
        }
        let (logical, physical) = if is_device {
            sys::block_sizes(&file).map_err(io("inspect"))?
        } else {
            (512, u32::try_from(meta.blksize()).unwrap_or(512))
        };
        let direct = if options.direct { Some(Direct::open(&file, path, options.mode)?) } else { None };
        let logical = direct.as_ref().map_or(logical, |direct| direct.offset_align().max(logical));
        // A driver cannot reach a last block that is not whole: the rest of this crate copes with sectors.
        let logical_block =
            block_size(logical).filter(|size| capacity % u64::from(*size) == 0).unwrap_or(512);
        let physical_block = block_size(physical).unwrap_or(512).max(logical_block);
        let (path, capacity) = (path.to_owned(), AtomicU64::new(capacity));
        let locked = Mutex::new(false);
        Ok(Self { file, direct, path, capacity, logical_block, physical_block, is_device, options, locked })
    }
}

/// Refuses a descriptor that was opened in a way that a disk cannot be used in.
pub(crate) fn check_descriptor(file: &File, path: &Path, mode: OpenMode) -> Result<(), DiskError> {
    let flags = sys::status_flags(file).map_err(|source| DiskError::Io {
        path: path.to_owned(),
        action: "inspect",
        source,
    })?;
    let found = match flags & libc::O_ACCMODE {
        _ if flags & libc::O_PATH != 0 => "only a place in the file system (O_PATH)",
        libc::O_WRONLY => "open for writing only",
        libc::O_RDONLY if mode == OpenMode::ReadWrite => "open for reading only",
        _ if mode == OpenMode::ReadWrite && flags & libc::O_APPEND != 0 => "open for appending (O_APPEND)",
        _ => return Ok(()),
    };
    let wanted = match mode {
        OpenMode::ReadWrite => "for reading and writing (O_RDWR)",
        OpenMode::ReadOnly => "for reading (O_RDONLY)",
    };
    Err(DiskError::Descriptor { path: path.to_owned(), found, wanted })
}

fn inspect(file: &File, path: &Path) -> Result<Metadata, DiskError> {
    let failed = |source| DiskError::Io { path: path.to_owned(), action: "inspect", source };
    file.metadata().map_err(failed)
}

/// Opens a path that the caller gave, and says what it is.
pub(crate) fn open_file(path: &Path, mode: OpenMode) -> Result<(File, Metadata), DiskError> {
    // Opening a pipe without O_NONBLOCK would wait for its other end.
    let file = OpenOptions::new()
        .read(true)
        .write(mode == OpenMode::ReadWrite)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|e| open_error(path, mode, e))?;
    let meta = inspect(&file, path)?;
    if mode == OpenMode::ReadWrite && meta.file_type().is_file() && meta.mode() & 0o222 == 0 {
        return Err(DiskError::ReadOnlyFile { path: path.to_owned() });
    }
    Ok((file, meta))
}

/// A block size that a guest can be told.
fn block_size(size: u32) -> Option<u32> {
    Some(size).filter(|size| size.is_power_of_two() && (512..=65536).contains(size))
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

pub(crate) fn name_of(kind: FileType) -> &'static str {
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
