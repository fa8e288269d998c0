//! Opening an image and what it is based on: which files these are, the caller decides, never the data.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};

use super::header::{BackingName, Header, image_error};
use super::options::{Base, Qcow2Options};
use super::storage::ImageFile;
use super::{CACHED_L2_TABLES, CACHED_REFCOUNT_BLOCKS, ImageFormat};
use crate::raw::open::{check_descriptor, name_of, open_error, open_file};
use crate::{DiskError, OpenMode, sys};

/// So many images may be based on each other.
const MAX_LAYERS: usize = 64;
/// So much memory may the tables of all images of a chain take.
const MAX_TABLES: u64 = 1 << 30;

/// One image of a chain.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) image: Arc<ImageFile>,
    /// `None` for a raw image.
    pub(super) header: Option<Header>,
    /// Bytes of the disk in a qcow2 image: what its header said, until it is resized.
    pub(super) size: AtomicU64,
    writable: bool,
}

impl Layer {
    /// Returns true if the file is still the image that was opened; tables may have moved.
    pub(super) fn read_again(&self) -> Result<Option<Header>, DiskError> {
        let Some(before) = &self.header else { return Ok(None) };
        let ImageFile { file, path, .. } = &*self.image;
        let header = Header::read(file, path, self.len()?)?;
        let size = self.size.load(Ordering::Relaxed);
        if header.size != size {
            return Err(DiskError::Resized { path: path.clone(), len: header.size, before: size });
        }
        let same = header.cluster_bits == before.cluster_bits
            && header.refcount_order == before.refcount_order
            && header.version == before.version
            && header.backing == before.backing;
        if !same {
            return Err(image_error(path, "header", "has changed since the image was opened; open it again"));
        }
        Ok(Some(header))
    }

    pub(super) fn len(&self) -> Result<u64, DiskError> {
        self.image.len().map_err(|source| self.io_error("measure", source))
    }

    /// Size of the disk that it holds.
    pub(super) fn capacity(&self) -> Result<u64, DiskError> {
        self.header.as_ref().map_or_else(|| self.len(), |_| Ok(self.size.load(Ordering::Relaxed)))
    }

    pub(super) fn io_error(&self, action: &'static str, source: io::Error) -> DiskError {
        DiskError::Io { path: self.image.path.clone(), action, source }
    }

    /// Returns true if both are the same file.
    pub(super) fn is_same_file(&self, other: &Self) -> bool {
        matches!((identity(&self.image), identity(&other.image)), (Ok(one), Ok(two)) if one == two)
    }

    pub(super) fn lock(&self) -> Result<(), DiskError> {
        sys::lock_file(&self.image.file, self.writable).map_err(|source| match source.raw_os_error() {
            Some(libc::EAGAIN | libc::EACCES) => DiskError::InUse { path: self.image.path.clone() },
            _ => self.io_error("lock", source),
        })
    }

    pub(super) fn unlock(&self) -> Result<(), DiskError> {
        sys::unlock_file(&self.image.file).map_err(|source| self.io_error("unlock", source))
    }
}

/// Locks all images: those that are written to exclusively, the others shared. All or none.
pub(super) fn lock(layers: &[Layer]) -> Result<(), DiskError> {
    for (index, layer) in layers.iter().enumerate() {
        if let Err(error) = layer.lock() {
            let _ = unlock(layers.get(..index).unwrap_or_default());
            return Err(error);
        }
    }
    Ok(())
}

/// Gives up the locks of [`lock`].
pub(super) fn unlock(layers: &[Layer]) -> Result<(), DiskError> {
    layers.iter().map(Layer::unlock).fold(Ok(()), Result::and)
}

/// Opens the image at `path`, and all that it is based on. The first is the image itself.
pub(super) fn open(path: &Path, options: &Qcow2Options) -> Result<Vec<Layer>, DiskError> {
    chain(ImageFile::new(open_file(path, options.mode)?.0, path.to_owned()), folder_of(path), options)
}

/// The same for an image that is open.
pub(super) fn from_fd(fd: OwnedFd, options: &Qcow2Options) -> Result<Vec<Layer>, DiskError> {
    let file = File::from(fd);
    let path = PathBuf::from(format!("descriptor {}", file.as_raw_fd()));
    check_descriptor(&file, &path, options.mode)?;
    chain(ImageFile::new(file, path), None, options)
}

/// Opens what a disk is based on, and all that this is based on.
pub(super) fn open_base(base: &Base, options: &Qcow2Options) -> Result<Vec<Layer>, DiskError> {
    let mut layers = Vec::new();
    let (image, folder) = open_named(base, OpenMode::ReadOnly)?;
    push(&mut layers, image, base.format(), folder, options)?;
    Ok(layers)
}

fn chain(image: ImageFile, folder: Option<PathBuf>, options: &Qcow2Options) -> Result<Vec<Layer>, DiskError> {
    let mut layers = Vec::new();
    push(&mut layers, image, ImageFormat::Qcow2, folder, options)?;
    Ok(layers)
}

/// Adds an image, and all that it is based on.
fn push(
    layers: &mut Vec<Layer>,
    mut image: ImageFile,
    mut format: ImageFormat,
    mut folder: Option<PathBuf>,
    options: &Qcow2Options,
) -> Result<(), DiskError> {
    let folders = Folders::open(&options.folders)?;
    let mut seen = Vec::new();
    let mut tables = 0;
    loop {
        let first = layers.is_empty();
        let path = image.path.clone();
        let identity = identity(&image)?;
        if seen.contains(&identity) {
            let problem = "is based on itself: the chain of backing files is a loop";
            return Err(image_error(&path, "backing file", problem));
        }
        seen.push(identity);
        if layers.len() >= MAX_LAYERS {
            let problem =
                format!("is one of more than {MAX_LAYERS}; qemu-img rebase or commit shortens the chain");
            return Err(image_error(&path, "backing file", problem));
        }
        let len =
            image.len().map_err(|source| DiskError::Io { path: path.clone(), action: "measure", source })?;
        let header = match format {
            ImageFormat::Raw => None,
            ImageFormat::Qcow2 => Some(Header::read(&image.file, &path, len)?),
        };
        let top = options.top_writable && first;
        let writable = top || options.base_writable && layers.len() == 1;
        if let Some(header) = &header {
            check_use(header, &path, writable)?;
            tables += table_memory(header, writable);
        }
        if tables > MAX_TABLES {
            let problem = format!("would take more than {} MiB of memory", MAX_TABLES >> 20);
            return Err(image_error(&path, "tables", problem));
        }
        let backing = header.as_ref().and_then(|header| header.backing.clone());
        let size = AtomicU64::new(header.as_ref().map_or(0, |header| header.size));
        layers.push(Layer { image: Arc::new(image), header, size, writable });
        let mode =
            if options.base_writable && layers.len() == 1 { OpenMode::ReadWrite } else { OpenMode::ReadOnly };
        (image, format, folder) = match (&options.base, backing) {
            (Some(base), backing) if first && options.top_is_image => {
                is_over(&path, folder.as_deref(), backing.as_ref(), base)?;
                let (image, folder) = open_named(base, mode)?;
                (image, base.format(), folder)
            }
            (_, None) => return Ok(()),
            (_, Some(backing)) => {
                let Some(format) = backing.format.or(options.unnamed) else {
                    return Err(DiskError::Backing {
                        path,
                        name: backing.name,
                        problem: "has no named format, and none is guessed: name it, or qemu-img rebase -u -F FORMAT".into(),
                    });
                };
                let image = folders.open_below(&path, folder.as_deref(), &backing.name, mode)?;
                let folder = image.path.parent().map(Path::to_owned);
                (image, format, folder)
            }
        };
    }
}

/// What an image must not be to be used so.
fn check_use(header: &Header, path: &Path, writable: bool) -> Result<(), DiskError> {
    let wrong = |field, problem: &str| Err(image_error(path, field, problem));
    match writable {
        true if header.version < 3 => {
            wrong("version", "2 can be read only; qemu-img amend -o compat=1.1 makes it 3")
        }
        true if header.snapshots != 0 => wrong(
            "nb_snapshots",
            "is not 0: an image with internal snapshots can be read only; qemu-img snapshot -d removes them",
        ),
        false if header.dirty => wrong(
            "incompatible_features",
            "says that the image was not closed; open it read-write once, or qemu-img check -r all repairs it",
        ),
        _ => Ok(()),
    }
}

/// Memory that the tables of an image take at most.
fn table_memory(header: &Header, writable: bool) -> u64 {
    let l2 = header.l2_tables().min(CACHED_L2_TABLES) << header.cluster_bits;
    let refcounts = header.refcount_entries().min(CACHED_REFCOUNT_BLOCKS) << header.cluster_bits;
    let first = u64::from(header.l1_entries) * 8;
    // Of what is written to, it is known where each table is.
    l2 + first + if writable { refcounts + header.refcount_entries() * 8 + 2 * first } else { 0 }
}

/// A caller who says what an image is based on has to be right: its clusters mean nothing over another.
fn is_over(
    path: &Path,
    folder: Option<&Path>,
    backing: Option<&BackingName>,
    base: &Base,
) -> Result<(), DiskError> {
    let name = backing.map(|backing| backing.name.clone()).unwrap_or_default();
    let wrong =
        |problem: String| Err(DiskError::Backing { path: path.to_owned(), name: name.clone(), problem });
    let Some(backing) = backing else {
        return wrong(format!("is none: the image is not based on {:?}", base.path()));
    };
    if backing.format.is_some_and(|format| format != base.format()) {
        return wrong(format!("has another format than {}", base.format().name()));
    }
    let Base::Path(path, _) = base else { return Ok(()) };
    let named = folder.unwrap_or(Path::new("")).join(&backing.name);
    let same = named == *path || fs::canonicalize(path).is_ok_and(|path| named == path);
    if !same { wrong(format!("is not {path:?}, which is to be below it; rebase it")) } else { Ok(()) }
}

/// Opens a file that the caller names.
fn open_named(base: &Base, mode: OpenMode) -> Result<(ImageFile, Option<PathBuf>), DiskError> {
    match base {
        Base::Path(path, _) => Ok((ImageFile::new(open_file(path, mode)?.0, path.clone()), folder_of(path))),
        Base::File(file, _) => {
            let path = PathBuf::from(format!("descriptor {}", file.as_raw_fd()));
            let file = file.try_clone().map_err(|source| DiskError::Io {
                path: path.clone(),
                action: "open",
                source,
            })?;
            check_descriptor(&file, &path, mode)?;
            Ok((ImageFile::new(file, path), None))
        }
    }
}

/// The folder that names of backing files are relative to.
pub(super) fn folder_of(path: &Path) -> Option<PathBuf> {
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::canonicalize(parent).ok()
}

/// Two files with the same identity are one.
fn identity(image: &ImageFile) -> Result<(bool, u64, u64), DiskError> {
    let io = |source| DiskError::Io { path: image.path.clone(), action: "inspect", source };
    let meta = image.file.metadata().map_err(io)?;
    let kind = meta.file_type();
    if kind.is_block_device() {
        return Ok((true, meta.rdev(), 0));
    }
    if !kind.is_file() {
        return Err(DiskError::NotAFile { path: image.path.clone(), found: name_of(kind) });
    }
    Ok((false, meta.dev(), meta.ino()))
}

/// The folders below which backing files may be, open, so that they stay what they were.
struct Folders(Vec<Folder>);

struct Folder {
    /// As the caller named it, and as it is without links.
    names: [PathBuf; 2],
    fd: OwnedFd,
}

impl Folders {
    fn open(paths: &[PathBuf]) -> Result<Self, DiskError> {
        let open = |path: &PathBuf| {
            let io = |source| DiskError::Io { path: path.clone(), action: "open the folder", source };
            let real = fs::canonicalize(path).map_err(io)?;
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let fd = rustix::fs::open(&real, flags, Mode::empty()).map_err(|e| io(e.into()))?;
            Ok(Folder { names: [path.clone(), real], fd })
        };
        paths.iter().map(open).collect::<Result<_, _>>().map(Self)
    }

    /// Opens the backing file `name` of the image `of` in `folder`. The kernel refuses to leave the allowed folder,
    /// by links or otherwise, whatever somebody does to it meanwhile.
    fn open_below(
        &self,
        of: &Path,
        folder: Option<&Path>,
        name: &str,
        mode: OpenMode,
    ) -> Result<ImageFile, DiskError> {
        let wrong =
            |problem: String| DiskError::Backing { path: of.to_owned(), name: name.to_owned(), problem };
        let given = Path::new(name);
        if given.components().any(|part| part == Component::ParentDir) {
            return Err(wrong("has .. in its name; qemu-img rebase -u gives it a name without".into()));
        }
        let is_protocol = |first: &OsStr| first.as_encoded_bytes().contains(&b':');
        if given.components().next().is_some_and(|first| is_protocol(first.as_os_str())) {
            return Err(wrong("is not a plain file name".into()));
        }
        let full = match folder {
            _ if given.is_absolute() => given.to_owned(),
            Some(folder) => folder.join(given),
            None => {
                return Err(wrong("is relative, but the folder of an open descriptor is not known".into()));
            }
        };
        let below = |folder: &Folder| {
            let name = folder.names.iter().find_map(|name| full.strip_prefix(name).ok())?;
            Some((name.to_owned(), folder.fd.as_raw_fd()))
        };
        let Some((folder, rest)) =
            self.0.iter().find_map(|folder| below(folder).map(|(rest, _)| (folder, rest)))
        else {
            let problem = if self.0.is_empty() {
                "may not be opened: no folder for backing files is allowed".to_owned()
            } else {
                let allowed: Vec<_> = self.0.iter().map(|folder| &folder.names[0]).collect();
                format!("is not below an allowed folder: {allowed:?}")
            };
            return Err(wrong(problem));
        };
        let access = if mode == OpenMode::ReadWrite { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let file = openat2(&folder.fd, &rest, flags, Mode::empty(), resolve).map_err(|e| {
            match e.raw_os_error() {
                libc::EXDEV | libc::ELOOP => wrong("leads out of the allowed folder by a link".into()),
                libc::ENOSYS => wrong("cannot be opened safely: that takes openat2(2), Linux 5.6".into()),
                _ => open_error(&full, mode, e.into()),
            }
        })?;
        Ok(ImageFile::new(file.into(), full))
    }
}
