//! A disk whose sectors are the bytes of a file or of a block device, in order.

mod direct;
mod error;
pub(crate) mod open;
mod options;
pub(crate) mod space;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{DeviceError, Identity, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};

use self::direct::Direct;
use crate::uring::UringEngine;
use crate::{Disk, DiskIo, Engine, EngineSetup, SyncEngine, ThreadEngine, sys};
pub use error::DiskError;
pub use options::{EngineKind, OpenMode, RawOptions};

/// A raw disk file, or a block device, as it is: whatever its first bytes look like, its format is never
/// guessed.
///
/// Reads and writes go through the host's page cache unless [`RawOptions::direct`] says otherwise. With
/// [`EngineKind::Sync`], the default, they block the thread that runs the device's worker, and with a shared runtime all
/// workers on it. Where that matters, give the device a thread of its own, or use [`EngineKind::Uring`].
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
    /// The same without the page cache.
    direct: Option<Direct>,
    path: PathBuf,
    capacity: AtomicU64,
    logical_block: u32,
    physical_block: u32,
    is_device: bool,
    options: RawOptions,
    /// It is locked. Held while that changes, and while the size does.
    locked: Mutex<bool>,
}

impl RawFile {
    /// The files for requests, of which the second, if any, goes past the page cache.
    pub(crate) fn files(&self) -> (&File, Option<&Direct>) {
        (&self.file, self.direct.as_ref())
    }

    /// Returns true if it is a block device.
    pub(crate) fn is_device(&self) -> bool {
        self.is_device
    }

    /// The file for a transfer.
    #[inline]
    fn file_for(&self, segments: Segments<'_>, offset: u64) -> &File {
        match &self.direct {
            Some(direct) if direct.takes(segments, offset) => direct.file(),
            _ => &self.file,
        }
    }

    fn locked(&self) -> MutexGuard<'_, bool> {
        self.locked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_file(&self) -> Result<(), DiskError> {
        sys::lock_file(&self.file, self.options.mode == OpenMode::ReadWrite).map_err(|source| {
            match source.raw_os_error() {
                Some(libc::EAGAIN | libc::EACCES) => DiskError::InUse { path: self.path.clone() },
                _ => self.io_error("lock")(source),
            }
        })
    }

    fn unlock_file(&self) -> Result<(), DiskError> {
        sys::unlock_file(&self.file).map_err(self.io_error("unlock"))
    }

    fn try_lock(&self) -> Result<(), DiskError> {
        let mut locked = self.locked();
        self.lock_file()?;
        // Whoever had it before may have changed it.
        let (len, before) = (self.measure()?, self.capacity());
        if len != before {
            self.unlock_file()?;
            *locked = false;
            return Err(DiskError::Resized { path: self.path.clone(), len, before });
        }
        *locked = true;
        Ok(())
    }

    fn try_unlock(&self) -> Result<(), DiskError> {
        let mut locked = self.locked();
        self.unlock_file()?;
        *locked = false;
        Ok(())
    }

    fn try_resize(&self, capacity: u64) -> Result<(), DiskError> {
        let len = self.measure()?;
        if len != capacity && self.is_device {
            return Err(DiskError::Resized { path: self.path.clone(), len, before: capacity });
        }
        if len != capacity {
            self.file.set_len(capacity).map_err(self.io_error("resize"))?;
        }
        self.capacity.store(capacity, Ordering::Relaxed);
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

impl DiskIo for RawFile {
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        mem.preadv(self.file_for(to, offset), to, offset)
    }

    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        mem.pwritev(self.file_for(from, offset), from, offset)
    }

    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        space::discard(&self.file, self.is_device, offset, len)
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        space::write_zeroes(&self.file, offset, len, unmap)
    }
}

impl Disk for RawFile {
    type Engine = Box<dyn Engine>;

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        self.options.mode == OpenMode::ReadOnly
    }

    fn logical_block(&self) -> u32 {
        self.logical_block
    }

    fn physical_block(&self) -> u32 {
        self.physical_block
    }

    fn engine(self: &Arc<Self>, setup: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(match self.options.engine {
            EngineKind::Sync => Box::new(SyncEngine::new(Arc::clone(self))),
            EngineKind::Thread => Box::new(ThreadEngine::new(Arc::clone(self), setup)?),
            EngineKind::Uring => Box::new(UringEngine::new(Arc::clone(self), setup)?),
        })
    }

    /// A file grows or shrinks; a block device has to have the size already. A file that changes, and that
    /// is not locked, is locked meanwhile: another machine may have it.
    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        if capacity == 0 {
            return Err(DiskError::Empty { path: self.path.clone() });
        }
        if !capacity.is_multiple_of(512) {
            return Err(DiskError::Tail { path: self.path.clone(), len: capacity });
        }
        let locked = self.locked();
        let writes = !self.is_device && !self.read_only() && self.measure()? != capacity;
        if *locked || !writes {
            return self.try_resize(capacity);
        }
        self.lock_file()?;
        let resized = self.try_resize(capacity);
        resized.and(self.unlock_file())
    }

    fn lock(&self) -> Result<(), DeviceError> {
        self.try_lock().map_err(device_error)
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        self.try_unlock().map_err(device_error)
    }

    fn identities(&self) -> Vec<Identity> {
        let written = Some(&self.file).filter(|_| !self.read_only());
        written.and_then(|file| Some(Identity::writable_file(&file.metadata().ok()?))).into_iter().collect()
    }

    fn syscalls(&self) -> &'static [Syscall] {
        match self.options.engine {
            EngineKind::Sync => SYNC,
            EngineKind::Thread => THREAD,
            EngineKind::Uring => URING,
        }
    }
}

/// These system calls, and those of [`SYNC`].
macro_rules! beside_those_of_sync {
    ($($name:literal),*) => {
        &[
            $(Syscall($name),)*
            Syscall("timerfd_create"),
            Syscall("timerfd_settime"),
            Syscall("close"),
            Syscall("write"),
            Syscall("preadv"),
            Syscall("pwritev"),
            Syscall("pwrite64"),
            Syscall("fdatasync"),
            Syscall("fallocate"),
            Syscall("ftruncate"),
            Syscall("fcntl"),
            Syscall("ioctl"),
            Syscall("lseek"),
        ]
    };
}

/// A queue within limits has a timer, each time that a driver starts it; failures of the host are events.
const SYNC: &[Syscall] = beside_those_of_sync![];

/// A thread and an event are made for each queue that a driver starts.
const THREAD: &[Syscall] = beside_those_of_sync![
    "clone",
    "clone3",
    "eventfd2",
    "exit",
    "futex",
    "madvise",
    "mmap",
    "mprotect",
    "munmap",
    "prctl",
    "rseq",
    "rt_sigprocmask",
    "sched_getaffinity",
    "set_robust_list",
    "sigaltstack"
];

/// The engine falls back to that of [`SYNC`]. Each queue that a driver starts has a ring, and what watches
/// it.
const URING: &[Syscall] = beside_those_of_sync![
    "epoll_create1",
    "epoll_ctl",
    "eventfd2",
    "io_uring_setup",
    "io_uring_register",
    "io_uring_enter",
    "mmap",
    "munmap",
    "read"
];

#[cfg(test)]
mod tests;
