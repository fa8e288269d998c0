//! Images that no machine uses: made, merged into their base, put onto another.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use imago::qcow2::Qcow2 as Format;
use imago::{FormatAccess, FormatCreateBuilder, ShallowMapping};

use super::chain::{self, Layer, folder_of};
use super::header::{self, BackingName};
use super::image::Image;
use super::options::Base;
use super::storage::{ImageFile, ImageStorage};
use super::{ImageFormat, Qcow2, Qcow2Options};
use crate::raw::open::open_file;
use crate::{DiskError, OpenMode};

/// Contents are compared and copied in pieces of this size at most.
const PIECE: u64 = 1 << 20;

/// An image that is to be made, version 3 of the format.
#[derive(Clone, Debug)]
pub struct NewQcow2 {
    size: u64,
    cluster_size: u32,
    backing: Option<BackingName>,
}

impl NewQcow2 {
    /// An empty disk of `size` bytes, a multiple of 512.
    pub fn new(size: u64) -> Self {
        Self { size, cluster_size: 1 << 16, backing: None }
    }

    /// A disk with the size and the contents of a raw image, or of a qcow2 image that stands alone, which it names by its
    /// absolute path.
    pub fn over(base: impl AsRef<Path>, format: ImageFormat) -> Result<Self, DiskError> {
        Self::over_with(base, format, &Qcow2Options::new(OpenMode::ReadOnly))
    }

    /// The same for a base that is itself based on images, which `options` allow.
    pub fn over_with(
        base: impl AsRef<Path>,
        format: ImageFormat,
        options: &Qcow2Options,
    ) -> Result<Self, DiskError> {
        let base = base.as_ref();
        let layers = chain::open_base(&Base::Path(base.to_owned(), format), &options.for_base())?;
        let size = layers.first().map_or(Ok(0), Layer::capacity)?;
        if !size.is_multiple_of(512) {
            return Err(DiskError::Tail { path: base.to_owned(), len: size });
        }
        let backing = Some(BackingName { name: name_of(base)?, format: Some(format) });
        Ok(Self { backing, ..Self::new(size) })
    }

    /// The size of what is allocated at once, a power of two from 512 bytes to 2 MiB; 64 KiB at first.
    #[must_use]
    pub fn with_cluster_size(mut self, bytes: u32) -> Self {
        self.cluster_size = bytes;
        self
    }

    /// Makes the file `path`, which must not be there yet.
    pub fn create(&self, path: impl AsRef<Path>) -> Result<(), DiskError> {
        let path = path.as_ref();
        let io = |source| DiskError::Io { path: path.to_owned(), action: "create", source };
        let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(io)?;
        let made = self.write(file, path);
        if made.is_err() {
            let _ = fs::remove_file(path);
        }
        made
    }

    /// Makes the image in an empty file that is open for reading and writing, such as a memfd.
    pub fn create_in(&self, fd: impl Into<OwnedFd>) -> Result<(), DiskError> {
        self.write(File::from(fd.into()), Path::new("a descriptor"))
    }

    fn write(&self, file: File, path: &Path) -> Result<(), DiskError> {
        let io = |source| DiskError::Io { path: path.to_owned(), action: "create", source };
        if self.size == 0 {
            return Err(DiskError::Empty { path: path.to_owned() });
        }
        if !self.size.is_multiple_of(512) {
            return Err(DiskError::Tail { path: path.to_owned(), len: self.size });
        }
        if file.metadata().map_err(io)?.len() != 0 {
            let problem = "is not empty; an image is made in an empty file";
            return Err(header::image_error(path, "file", problem));
        }
        let image = Arc::new(ImageFile::new(file, path.to_owned()));
        let mut new = Format::<ImageStorage>::create_builder(ImageStorage::new(Arc::clone(&image)))
            .size(self.size)
            .cluster_size(self.cluster_size as usize);
        if let Some(BackingName { name, format: Some(format) }) = &self.backing {
            new = new.backing(name.clone(), format.name().to_owned());
        }
        new.create().map_err(io)?;
        image.file.sync_all().map_err(io)
    }
}

impl Qcow2 {
    /// Writes what the image at `path` holds into the image that it is based on, which grows with it, and empties it.
    /// The options allow where that is. No other image may be based on it: its contents change under them.
    pub fn commit(path: impl AsRef<Path>, options: &Qcow2Options) -> Result<(), DiskError> {
        let path = path.as_ref();
        let layers = chain::open(path, &options.for_commit())?;
        let Some((top, below)) = layers.split_first().filter(|(_, below)| !below.is_empty()) else {
            return Err(header::image_error(path, "backing file", "is none: there is nothing to commit to"));
        };
        in_use(&layers, || {
            let size = top.capacity()?;
            let mut base = Image::open(below, true)?;
            let into = below.first().unwrap_or(top);
            if into.capacity()? < size {
                base.resize(size).map_err(|e| into.io_error("resize", e))?;
            }
            let mut image = Image::open(std::slice::from_ref(top), true)?;
            let merged = merge(image.access(), &mut base);
            let closed = base.close(into);
            merged.map_err(|e| into.io_error("write", e))?;
            closed?;
            image.clear(0, size).map_err(|e| top.io_error("empty", e))?;
            image.close(top)
        })
    }

    /// Puts the image at `path` onto another base, or onto none: the disk keeps its contents, as what the new base has not
    /// is copied. The options allow where the old base and the new one are.
    pub fn rebase(
        path: impl AsRef<Path>,
        base: Option<(&Path, ImageFormat)>,
        options: &Qcow2Options,
    ) -> Result<(), DiskError> {
        let path = path.as_ref();
        let layers = chain::open(path, &options.for_writing())?;
        let Some(top) = layers.first() else { return Ok(()) };
        let (below, name) = match base {
            None => (Vec::new(), None),
            Some((base, format)) => {
                let named = Base::Path(base.to_owned(), format);
                let name = BackingName { name: name_of(base)?, format: Some(format) };
                (chain::open_base(&named, &options.for_base())?, Some(name))
            }
        };
        let is_same = |layer: &Layer| layer.is_same_file(top);
        if below.iter().any(is_same) {
            return Err(header::image_error(
                path,
                "backing file",
                "would be based on the image itself: a loop",
            ));
        }
        // Bases that both chains have are locked twice, shared.
        in_use(&layers, || {
            in_use(&below, || {
                let image = Image::open(&layers, true)?;
                let new = if below.is_empty() { None } else { Some(Image::open(&below, false)?) };
                let copied = copy_differences(&image, new.as_ref()).map_err(|e| top.io_error("copy to", e));
                image.close(top)?;
                copied?;
                header::set_backing(&top.image.file, path, name.as_ref())
            })
        })
    }

    /// Changes what the image at `path` says it is based on and nothing else: for a base that was moved.
    pub fn rename_base(path: impl AsRef<Path>, base: Option<(&str, ImageFormat)>) -> Result<(), DiskError> {
        let path = path.as_ref();
        let io = |action| move |source| DiskError::Io { path: path.to_owned(), action, source };
        let (file, _) = open_file(path, OpenMode::ReadWrite)?;
        crate::sys::lock_file(&file, true).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::InUse { path: path.to_owned() },
            _ => io("lock")(source),
        })?;
        let name = base.map(|(name, format)| BackingName { name: name.to_owned(), format: Some(format) });
        header::set_backing(&file, path, name.as_ref())
    }
}

/// Locks layers while something is done with them.
fn in_use<T>(layers: &[Layer], work: impl FnOnce() -> Result<T, DiskError>) -> Result<T, DiskError> {
    chain::lock(layers)?;
    let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let path = layers.first().map(|layer| layer.image.path.clone()).unwrap_or_default();
        Err(DiskError::Io { path, action: "change", source: super::panicked() })
    });
    let unlocked = chain::unlock(layers);
    let done = done?;
    unlocked.map(|()| done)
}

/// Writes all that `image` holds itself into `base`.
fn merge(image: &FormatAccess<ImageStorage>, base: &mut Image) -> io::Result<()> {
    let (mut at, end) = (0, image.size());
    while at < end {
        let (mapping, len) = image.get_shallow_mapping(at, end - at)?;
        match mapping {
            ShallowMapping::Eof { .. } => break,
            ShallowMapping::Zero { explicit: false, .. } | ShallowMapping::Indirect { .. } => at += len,
            ShallowMapping::Zero { .. } => {
                base.write_zeroes(at, len, false)?;
                at += len;
            }
            _ => {
                let mut data = vec![0; len.min(PIECE) as usize];
                image.read(&mut data, at)?;
                base.write_bytes_alone(&data, at)?;
                at += data.len() as u64;
            }
        }
    }
    Ok(())
}

/// Copies into the image what it does not hold itself and the new base does not hold either.
fn copy_differences(image: &Image, new: Option<&Image>) -> io::Result<()> {
    let (access, mut at) = (image.access(), 0);
    let (end, piece) = (access.size(), image.cluster().max(1 << 16));
    while at < end {
        let (mapping, len) = access.get_shallow_mapping(at, end - at)?;
        let held = !matches!(
            mapping,
            ShallowMapping::Zero { explicit: false, .. } | ShallowMapping::Indirect { .. }
        );
        if !held && !is_nothing(access, new, at, len)? {
            for start in (at..at + len).step_by(piece as usize) {
                let len = (at + len - start).min(piece) as usize;
                let (mut old, mut now) = (vec![0; len], vec![0; len]);
                access.read(&mut old, start)?;
                if let Some(new) = new {
                    new.access().read(&mut now, start)?;
                }
                if old != now {
                    access.write(&old, start)?;
                }
            }
        }
        at += len;
    }
    Ok(())
}

/// Returns true if tables alone say that both read as zeros.
fn is_nothing(old: &FormatAccess<ImageStorage>, new: Option<&Image>, at: u64, len: u64) -> io::Result<bool> {
    let is_zero = |access: &FormatAccess<ImageStorage>| -> io::Result<bool> {
        if at >= access.size() {
            return Ok(true);
        }
        let (mapping, zeros) = access.get_mapping(at, len)?;
        Ok(zeros == len && matches!(mapping, imago::Mapping::Zero { .. }))
    };
    Ok(is_zero(old)? && new.map_or(Ok(true), |new| is_zero(new.access()))?)
}

/// The name by which an image refers to its base, wherever itself is.
fn name_of(base: &Path) -> Result<String, DiskError> {
    let folder = folder_of(base).unwrap_or_default();
    let full: PathBuf = folder.join(base.file_name().unwrap_or_default());
    full.into_os_string().into_string().map_err(|name| DiskError::Backing {
        path: base.to_owned(),
        name: name.to_string_lossy().into_owned(),
        problem: "is not a name in UTF-8".into(),
    })
}
