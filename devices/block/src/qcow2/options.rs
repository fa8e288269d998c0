//! What a caller says about an image that is to be opened or created.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::{ImageFormat, OpenMode};

/// How an image is opened, and which files it may be based on: at first none.
#[derive(Clone, Debug)]
pub struct Qcow2Options {
    pub(super) mode: OpenMode,
    pub(super) folders: Vec<PathBuf>,
    pub(super) unnamed: Option<ImageFormat>,
    pub(super) base: Option<Base>,
    /// The first image is written to.
    pub(super) top_writable: bool,
    /// The first image is the one that [`base`](Self::base) is below.
    pub(super) top_is_image: bool,
    /// The second image is written to: a commit.
    pub(super) base_writable: bool,
}

/// What an image is based on, as the caller says.
#[derive(Clone, Debug)]
pub(super) enum Base {
    Path(PathBuf, ImageFormat),
    File(Arc<File>, ImageFormat),
}

impl Base {
    pub(super) fn format(&self) -> ImageFormat {
        match self {
            Self::Path(_, format) | Self::File(_, format) => *format,
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Path(path, _) => path,
            Self::File(..) => Path::new("a descriptor"),
        }
    }
}

impl Qcow2Options {
    /// Opens for `mode`. An image that is based on another is refused until a folder for these is allowed, or the
    /// base is given.
    pub fn new(mode: OpenMode) -> Self {
        Self {
            mode,
            folders: Vec::new(),
            unnamed: None,
            base: None,
            top_writable: mode == OpenMode::ReadWrite,
            top_is_image: true,
            base_writable: false,
        }
    }

    /// Backing files that images name may be in `folder` and below it. Links are followed as long as they stay there.
    /// Names with `..` are refused.
    #[must_use]
    pub fn with_backing_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.folders.push(folder.into());
        self
    }

    /// What a backing file is whose format the image that is based on it does not name. Such images are refused
    /// otherwise.
    #[must_use]
    pub fn with_unnamed_backing(mut self, format: ImageFormat) -> Self {
        self.unnamed = Some(format);
        self
    }

    /// The image is based on this file, which has to be the one that it names. It may be anywhere, and is only read.
    #[must_use]
    pub fn with_base(mut self, path: impl Into<PathBuf>, format: ImageFormat) -> Self {
        self.base = Some(Base::Path(path.into(), format));
        self
    }

    /// The image is based on this open file, whatever it names.
    #[must_use]
    pub fn with_base_fd(mut self, fd: impl Into<OwnedFd>, format: ImageFormat) -> Self {
        self.base = Some(Base::File(Arc::new(File::from(fd.into())), format));
        self
    }

    /// For what an image is based on.
    pub(super) fn for_base(&self) -> Self {
        Self {
            mode: OpenMode::ReadOnly,
            base: None,
            top_writable: false,
            top_is_image: false,
            ..self.clone()
        }
    }

    /// For an image that is written to, whatever the mode is.
    pub(super) fn for_writing(&self) -> Self {
        Self { mode: OpenMode::ReadWrite, top_writable: true, ..self.clone() }
    }

    /// For an image and its base that are both written to.
    pub(super) fn for_commit(&self) -> Self {
        Self { base_writable: true, ..self.for_writing() }
    }
}
