//! Disks in QEMU's qcow2 format: clusters that are allocated on demand, over other images that are only read.

mod chain;
mod header;
mod image;
mod manage;
mod options;
mod refcounts;
mod storage;
mod tables;

use std::io;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use ossature_bus::{DeviceError, Identity, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};

use crate::raw::device_error;
use crate::{Disk, DiskError, DiskIo, EngineSetup, ImageFormat, SyncEngine};
use chain::Layer;
use image::Image;
pub use manage::NewQcow2;
pub use options::Qcow2Options;

/// So many tables of the second level are held in memory for each image of a chain (a constant of `imago`).
const CACHED_L2_TABLES: u64 = 128;
/// So many blocks of refcounts are held for the image that is written to.
const CACHED_REFCOUNT_BLOCKS: u64 = 32;

/// A disk in a qcow2 image, version 3 or, to be read, 2: sparse, perhaps compressed, and perhaps based on another image,
/// which is only read and may be shared by many.
///
/// Which files are opened, the caller decides: the image itself, and what it is based on only below the folders that
/// [`Qcow2Options`] allows, or where the caller names it. No format is ever guessed. All that an image says is checked
/// before it is used; what is wrong is an error with the name of the file and the field, or a request that fails. Memory
/// for tables is bounded, for a whole chain, at one GiB; most disks take some MiB.
///
/// The disk works while it is [locked](Disk::lock): the image exclusively if it is written to, all that it is based on
/// shared. Until it is unlocked, the image is marked as open (its *dirty* bit). If the process ends before that, the next
/// one that opens it for writing writes new refcounts; nothing that was flushed is lost. A flush writes data first, then
/// tables, each to stable storage, and no table is written before the data that it shows. Whenever an image is opened for
/// writing all its tables are read: 128 MiB for a TiB in use.
///
/// Requests block the thread that submits them. Reads and writes of several queues run side by side; what discards or
/// writes zeros has the disk alone. A panic in the format's code fails the request and all that follow.
///
/// ```
/// use ossature_block::{Disk, ImageFormat, NewQcow2, OpenMode, Qcow2, Qcow2Options};
///
/// # let dir = tempfile::tempdir()?;
/// # let (base, clone) = (dir.path().join("base.img"), dir.path().join("clone.qcow2"));
/// std::fs::File::create(&base)?.set_len(64 << 20)?;
/// NewQcow2::over(&base, ImageFormat::Raw)?.create(&clone)?;
///
/// let options = Qcow2Options::new(OpenMode::ReadWrite).with_backing_folder(dir.path());
/// let disk = Qcow2::open(&clone, &options)?;
/// disk.lock()?;
/// disk.resize(128 << 20)?;
/// disk.unlock()?;
/// assert_eq!(disk.capacity(), 128 << 20);
/// drop(disk);
///
/// Qcow2::rebase(&clone, None, &options)?; // stands alone now
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Qcow2 {
    layers: Vec<Layer>,
    writable: bool,
    capacity: AtomicU64,
    cluster: u32,
    /// In use while the disk is locked.
    image: RwLock<Option<Image>>,
    /// The format's code has panicked.
    broken: AtomicBool,
}

impl Qcow2 {
    /// Opens the image at `path`.
    pub fn open(path: impl AsRef<Path>, options: &Qcow2Options) -> Result<Self, DiskError> {
        Self::new(chain::open(path.as_ref(), options)?, options)
    }

    /// Takes an image that is open already: for reading, and for writing too if the options say so. A relative name of a
    /// backing file is refused, as its folder is not known.
    pub fn from_fd(fd: impl Into<OwnedFd>, options: &Qcow2Options) -> Result<Self, DiskError> {
        Self::new(chain::from_fd(fd.into(), options)?, options)
    }

    /// Opens the image at `path`, which has to be one over `base`, or makes it if there is none: a linked clone.
    pub fn overlay(
        path: impl AsRef<Path>,
        base: impl AsRef<Path>,
        format: ImageFormat,
        options: &Qcow2Options,
    ) -> Result<Self, DiskError> {
        let (path, base) = (path.as_ref(), base.as_ref());
        let options = options.clone().with_base(base, format);
        match NewQcow2::over_with(base, format, &options)?.create(path) {
            Err(DiskError::Io { source, .. }) if source.kind() == io::ErrorKind::AlreadyExists => {}
            done => done?,
        }
        Self::open(path, &options)
    }

    fn new(layers: Vec<Layer>, options: &Qcow2Options) -> Result<Self, DiskError> {
        let header = layers.first().and_then(|layer| layer.header.as_ref());
        let (size, cluster) = header.map_or((0, 512), |header| (header.size, header.cluster_size() as u32));
        Ok(Self {
            writable: options.top_writable,
            capacity: AtomicU64::new(size),
            cluster,
            layers,
            image: RwLock::new(None),
            broken: AtomicBool::new(false),
        })
    }

    /// Works with the image, beside others.
    fn shared<T, E: From<io::Error>>(&self, work: impl FnOnce(&Image) -> Result<T, E>) -> Result<T, E> {
        let image = self.image.read().unwrap_or_else(PoisonError::into_inner);
        self.guard(|| work(image.as_ref().ok_or_else(not_locked)?))
    }

    /// Works with the image alone.
    fn alone<T, E: From<io::Error>>(&self, work: impl FnOnce(&mut Image) -> Result<T, E>) -> Result<T, E> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        self.guard(|| work(image.as_mut().ok_or_else(not_locked)?))
    }

    /// No panic leaves the format's code, and nothing is done with what it left behind.
    fn guard<T, E: From<io::Error>>(&self, work: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(panicked().into());
        }
        catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
            self.broken.store(true, Ordering::Relaxed);
            Err(panicked().into())
        })
    }

    fn try_lock(&self) -> Result<(), DiskError> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        if image.is_some() {
            return Ok(());
        }
        chain::lock(&self.layers)?;
        let top_error = |source| self.top_error("open", source);
        let opened = catch_unwind(AssertUnwindSafe(|| Image::open(&self.layers, self.writable)))
            .unwrap_or_else(|_| Err(top_error(panicked())));
        match opened {
            Ok(opened) => *image = Some(opened),
            Err(error) => {
                let _ = chain::unlock(&self.layers);
                return Err(error);
            }
        }
        Ok(())
    }

    fn try_unlock(&self) -> Result<(), DiskError> {
        let mut image = self.image.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(image) = image.as_ref().filter(|_| !self.broken.load(Ordering::Relaxed)) {
            // Without that, writes that the guest knows to be done would be undone: it stays in use.
            self.guard(|| image.finish()).map_err(|source| self.top_error("flush", source))?;
        }
        let closed = match (image.take(), self.layers.first()) {
            (Some(image), Some(top)) if !self.broken.load(Ordering::Relaxed) => {
                catch_unwind(AssertUnwindSafe(|| image.close(top)))
                    .unwrap_or_else(|_| Err(self.top_error("close", panicked())))
            }
            // Its tables are in doubt: they are not written. What is on the disk is repaired when it is opened.
            (Some(_), _) => Ok(()),
            (None, _) => Ok(()),
        };
        closed.and(chain::unlock(&self.layers))
    }

    fn top_error(&self, action: &'static str, source: io::Error) -> DiskError {
        let path = self.layers.first().map(|layer| layer.image.path.clone()).unwrap_or_default();
        DiskError::Io { path, action, source }
    }
}

impl Drop for Qcow2 {
    fn drop(&mut self) {
        if self.try_unlock().is_err() {
            let _ = chain::unlock(&self.layers);
        }
    }
}

fn not_locked() -> io::Error {
    io::Error::other("the disk is not locked: it works between lock and unlock")
}

fn panicked() -> io::Error {
    io::Error::other("the code of the qcow2 format has panicked; the image is left as it is")
}

impl DiskIo for Qcow2 {
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        self.shared(|image| image.read(mem, to, offset))
    }

    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        if !self.writable {
            return Err(io::Error::from(io::ErrorKind::ReadOnlyFilesystem).into());
        }
        // What is given up meanwhile must not be found for it: so looked at while nobody gives anything up.
        let written = self.shared(|image| {
            let is_rare = image.has_freed() || image.gives_up(offset, from.len())?;
            if is_rare { Ok(None) } else { image.write(mem, from, offset).map(Some) }
        })?;
        written.map_or_else(|| self.alone(|image| image.write_alone(mem, from, offset)), Ok)
    }

    fn flush(&self) -> io::Result<()> {
        if self.writable { self.shared(Image::flush) } else { Ok(()) }
    }

    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.alone(|image| image.discard(offset, len))
    }

    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if !self.writable {
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        self.alone(|image| image.write_zeroes(offset, len, unmap))
    }
}

impl Disk for Qcow2 {
    type Engine = SyncEngine<Self>;

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        !self.writable
    }

    fn logical_block(&self) -> u32 {
        512
    }

    /// A write of less copies the rest of the cluster when the cluster is new.
    fn physical_block(&self) -> u32 {
        self.cluster.min(4096)
    }

    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(SyncEngine::new(Arc::clone(self)))
    }

    /// The disk has to be locked.
    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        let path = || self.layers.first().map(|layer| layer.image.path.clone()).unwrap_or_default();
        if capacity == 0 {
            return Err(DiskError::Empty { path: path() });
        }
        if !capacity.is_multiple_of(512) {
            return Err(DiskError::Tail { path: path(), len: capacity });
        }
        if !self.writable {
            return Err(DiskError::ReadOnlyFile { path: path() });
        }
        self.alone(|image| image.resize(capacity)).map_err(|source| self.top_error("resize", source))?;
        self.capacity.store(capacity, Ordering::Relaxed);
        // It is still this image when the disk is locked again.
        if let Some(top) = self.layers.first() {
            top.size.store(capacity, Ordering::Relaxed);
        }
        Ok(())
    }

    fn lock(&self) -> Result<(), DeviceError> {
        self.try_lock().map_err(device_error)
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        self.try_unlock().map_err(device_error)
    }

    fn identities(&self) -> Vec<Identity> {
        let written = self.layers.first().map(|layer| &layer.image.file).filter(|_| self.writable);
        written.and_then(|file| Some(Identity::writable_file(&file.metadata().ok()?))).into_iter().collect()
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[
            Syscall("timerfd_create"),
            Syscall("timerfd_settime"),
            Syscall("close"),
            Syscall("write"),
            Syscall("futex"),
            Syscall("preadv"),
            Syscall("pwritev"),
            Syscall("pread64"),
            Syscall("pwrite64"),
            Syscall("fdatasync"),
            Syscall("fallocate"),
            Syscall("ftruncate"),
            Syscall("fcntl"),
            Syscall("ioctl"),
            Syscall("lseek"),
        ]
    }
}

impl std::fmt::Debug for Qcow2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Qcow2").field("layers", &self.layers).field("writable", &self.writable).finish()
    }
}

#[cfg(test)]
mod tests;
