//! A Linux kernel as what a machine runs. It boots by the protocols of x86_64 for now; how a vCPU starts is each
//! architecture's.

use std::fs::File;
use std::path::{Path, PathBuf};

use ossature_boot::x86_64::{self, BootError, BootProtocol, BootSpec};
use ossature_boot::{ImageSource, Platform};
use ossature_memory::GuestMmap;

use super::{Registers, start_registers};
use crate::machine::{Payload, PayloadError};

/// A Linux kernel with what it is started with.
#[derive(Clone, Debug)]
pub struct Linux {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
    protocol: BootProtocol,
    mapped: bool,
}

impl Linux {
    /// The kernel in this file: an ELF vmlinux or a bzImage. An open descriptor is `/proc/self/fd/N`.
    pub fn new(kernel: impl Into<PathBuf>) -> Self {
        Self {
            kernel: kernel.into(),
            initrd: None,
            cmdline: String::new(),
            protocol: BootProtocol::default(),
            mapped: false,
        }
    }

    /// With this initial RAM disk.
    #[must_use]
    pub fn initrd(mut self, initrd: impl Into<PathBuf>) -> Self {
        self.initrd = Some(initrd.into());
        self
    }

    /// With this command line.
    #[must_use]
    pub fn cmdline(mut self, cmdline: impl Into<String>) -> Self {
        self.cmdline = cmdline.into();
        self
    }

    /// Entered by this protocol.
    #[must_use]
    pub fn protocol(mut self, protocol: BootProtocol) -> Self {
        self.protocol = protocol;
        self
    }

    /// With kernel and initial RAM disk mapped copy-on-write instead of copied, as far as their pages meet
    /// pages of the guest: of an ELF kernel that is all, of a bzImage nothing. Saves the time and the memory of
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

/// A failure with the file that it is about.
#[derive(Debug, thiserror::Error)]
#[error("{role} {}: {source}", path.display())]
struct InFile {
    role: &'static str,
    path: PathBuf,
    source: PayloadError,
}

impl InFile {
    fn new(role: &'static str, path: &Path, source: impl Into<PayloadError>) -> Self {
        Self { role, path: path.to_owned(), source: source.into() }
    }
}

impl Payload for Linux {
    fn load(&mut self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError> {
        let open = |role, path: &Path| File::open(path).map_err(|e| InFile::new(role, path, e));
        let kernel = open("kernel", &self.kernel)?;
        let initrd = self.initrd.as_deref().map(|path| open("initrd", path)).transpose()?;
        let source = if self.mapped { ImageSource::Mapped } else { ImageSource::File };
        let mut spec = BootSpec::new(source(&kernel), &self.cmdline);
        spec.initrd = initrd.as_ref().map(source);
        spec.protocol = self.protocol;
        let booted =
            x86_64::prepare(memory, platform, &spec).map_err(|error| match (error, &self.initrd) {
                (BootError::Kernel(error), _) => InFile::new("kernel", &self.kernel, error).into(),
                (
                    error @ (BootError::ReadInitrd { .. }
                    | BootError::EmptyInitrd
                    | BootError::InitrdTooLarge { .. }),
                    Some(initrd),
                ) => InFile::new("initrd", initrd, error).into(),
                (error, _) => PayloadError::from(error),
            })?;
        Ok(start_registers(booted.cpu)?)
    }
}
