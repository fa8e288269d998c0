//! A Linux kernel as what a machine runs. How it boots is each architecture's.

use std::error::Error;
use std::fmt;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use ossature_boot::{ImageSource, Platform};
use ossature_memory::GuestMmap;

use super::{LinuxOptions, Registers, load_linux};
use crate::error_chain;
use crate::machine::{Payload, PayloadError};

/// A Linux kernel, or another one that boots as Linux does, with what it is started with.
///
/// Its files are opened once, when the machine is built, and read anew from the same descriptors with each reset: a
/// machine that has been built opens nothing.
///
/// ```
/// # use ossature_core::machine::Linux;
/// # fn demo(descriptor: std::os::fd::OwnedFd) -> Result<(), Box<dyn std::error::Error>> {
/// // By path, or by descriptors that somebody else has opened.
/// let linux = Linux::new("vmlinuz").initrd("initrd.img").cmdline("console=ttyS0 root=/dev/vda");
/// let linux = Linux::from_file(descriptor).initrd_file(std::fs::File::open("initrd.img")?);
/// # Ok(()) }
/// ```
#[derive(Clone, Debug)]
pub struct Linux {
    kernel: Image,
    initrd: Option<Image>,
    cmdline: String,
    mapped: bool,
    /// What other architectures do not have.
    pub(super) options: LinuxOptions,
}

/// What a kernel is started with.
pub(crate) struct Start<'a> {
    pub(crate) kernel: ImageSource<'a>,
    pub(crate) initrd: Option<ImageSource<'a>>,
    pub(crate) cmdline: &'a str,
}

/// Why it could not be, by what that is about.
pub(crate) enum StartError {
    Kernel(PayloadError),
    Initrd(PayloadError),
    Other(PayloadError),
}

impl Linux {
    /// The kernel in this file, as it is or packed with gzip, LZ4, XZ or zstd: on x86_64 an ELF file or a bzImage, on
    /// aarch64 an Image or an EFI image with one in it.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self::from_image(Image::Path(kernel.into()))
    }

    /// The kernel in this open file, which is read at absolute offsets: other machines may use the same one.
    pub fn from_file(kernel: impl Into<File>) -> Self {
        Self::from_image(Image::Open(None, Arc::new(kernel.into())))
    }

    fn from_image(kernel: Image) -> Self {
        Self { kernel, initrd: None, cmdline: String::new(), mapped: false, options: LinuxOptions::default() }
    }

    /// With this initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<PathBuf>) -> Self {
        self.initrd = Some(Image::Path(initrd.into()));
        self
    }

    /// With the initial RAM disk in this open file, which is read as that of [`from_file`](Self::from_file).
    #[must_use]
    pub fn initrd_file(mut self, initrd: impl Into<File>) -> Self {
        self.initrd = Some(Image::Open(None, Arc::new(initrd.into())));
        self
    }

    /// With this command line. Where the console is, and what happens when the kernel panics, is said here.
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// With kernel and initial RAM disk mapped copy-on-write instead of copied, as far as their pages meet
    /// pages of the guest: of an ELF kernel or an Image that is all, of a bzImage nothing. Saves the time and the memory of
    /// the copy, and guests share what none of them writes.
    ///
    /// The files then have to stay as they are for as long as the machine lives. The guest sees what is written
    /// to them, and to cut one short ends the process (`SIGBUS`) when the guest gets there; to replace one by
    /// renaming another is safe. It takes private guest memory: with [`Backing`](ossature_memory::Backing)s that
    /// are shared or huge, or with prefaulted memory, the machine is not built.
    #[must_use]
    pub fn mapped(mut self, mapped: bool) -> Self {
        self.mapped = mapped;
        self
    }
}

/// Where kernel and initial RAM disk come from.
#[derive(Clone, Debug)]
enum Image {
    Path(PathBuf),
    /// With the path that it was opened by, if it was by one.
    Open(Option<PathBuf>, Arc<File>),
}

impl Image {
    /// Opens it unless it is open.
    fn open(&mut self) -> io::Result<Arc<File>> {
        match self {
            Self::Open(_, file) => Ok(file.clone()),
            Self::Path(path) => {
                let file = Arc::new(File::open(&*path)?);
                *self = Self::Open(Some(std::mem::take(path)), file.clone());
                Ok(file)
            }
        }
    }

    /// A failure with this image, by its role.
    fn failure(&self, role: &'static str, source: impl Into<PayloadError>) -> InFile {
        let path = match self {
            Self::Path(path) | Self::Open(Some(path), _) => Some(path.clone()),
            Self::Open(None, _) => None,
        };
        InFile { role, path, source: source.into() }
    }
}

/// A failure with the file that it is about.
#[derive(Debug)]
struct InFile {
    role: &'static str,
    /// `None` if it was given as a descriptor.
    path: Option<PathBuf>,
    source: PayloadError,
}

impl fmt::Display for InFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let cause = error_chain(&*self.source);
        match &self.path {
            Some(path) => write!(f, "{} {}: {cause}", self.role, path.display()),
            None => write!(f, "{}: {cause}", self.role),
        }
    }
}

impl Error for InFile {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.source)
    }
}

impl Payload for Linux {
    fn load(&mut self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError> {
        let kernel = self.kernel.open().map_err(|error| self.kernel.failure("kernel", error))?;
        let initrd = match &mut self.initrd {
            Some(image) => Some(image.open().map_err(|error| image.failure("initrd", error))?),
            None => None,
        };
        let source = if self.mapped { ImageSource::Mapped } else { ImageSource::File };
        let start =
            Start { kernel: source(&kernel), initrd: initrd.as_deref().map(source), cmdline: &self.cmdline };
        load_linux(memory, platform, &start, &self.options).map_err(|error| match (error, &self.initrd) {
            (StartError::Kernel(error), _) => self.kernel.failure("kernel", error).into(),
            (StartError::Initrd(error), Some(initrd)) => initrd.failure("initrd", error).into(),
            (StartError::Initrd(error) | StartError::Other(error), _) => error,
        })
    }
}

// The kernel that they load is one for x86.
#[cfg(test)]
#[cfg(target_arch = "x86_64")]
mod tests;
