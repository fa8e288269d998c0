//! `--disk`: what it says, and the block device that comes of it.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use ossature::block::{EngineKind, ImageFormat, OpenMode, RawFile, RawOptions};
#[cfg(feature = "qcow2")]
use ossature::block::{Qcow2, Qcow2Options};
use ossature::bus::{RateLimiter, RateLimits};
use ossature::virtio::LocalDevice;
use ossature::virtio::blk::{Blk, BlkHandle, CacheMode, DiskId, OnHostError};
use ossature::vmm::program::{KeyValueError, KeyValues, parse_rate};

use crate::Result;

/// The keys, for the summary of the command line.
pub const SYNTAX: &str = "path=FILE[,KEY=VALUE]...";

/// The keys, one by one.
pub const HELP: &str = "\
A disk; repeatable, the first is vda. A comma in a value is written twice
  path=FILE          a file or a block device
  format=raw|qcow2   its format, which is never guessed [default: raw]
  backing=FOLDER     files that a qcow2 image is based on may be there and below; at first, nowhere
  overlay=FILE       a qcow2 image over the disk, which takes what the guest writes; made if there is none
  readonly[=on|off]  the guest cannot write
  id=NAME            its serial number, up to 20 characters [default: diskN]
  engine=sync|thread|uring
                     one request after the other, the same on a thread, or io_uring [default: sync]
  direct[=on|off]    past the host's page cache
  cache=writeback|writethrough
                     when a write lasts: after a flush, or at once [default: writeback]
  on-error=report|pause|pause-if-full
                     when the host cannot read or write: tell the guest, or pause the machine, which tries again when it
                     is resumed (--control): always, or only if the host's disk is full [default: report]
  queues=N           up to 256 [default: 1]
  limit=RATE         bytes, such as 100M/s, or 100M/s+1G with a burst
  ops=RATE           requests, such as 2000/s";

const KEYS: &[&str] = &[
    "path=FILE",
    "format=raw|qcow2",
    "backing=FOLDER",
    "overlay=FILE",
    "readonly",
    "id=NAME",
    "engine=sync|thread|uring",
    "direct",
    "cache=writeback|writethrough",
    "on-error=report|pause|pause-if-full",
    "queues=N",
    "limit=RATE",
    "ops=RATE",
];

#[derive(Clone, Debug)]
pub struct Disk {
    pub path: PathBuf,
    pub readonly: bool,
    pub id: Option<DiskId>,
    format: ImageFormat,
    backing: Option<PathBuf>,
    overlay: Option<PathBuf>,
    options: RawOptions,
    cache: CacheMode,
    on_error: OnHostError,
    queues: u16,
    limits: RateLimits,
}

impl Disk {
    pub fn parse(text: OsString) -> std::result::Result<Self, KeyValueError> {
        let keys = KeyValues::parse(&text, KEYS)?;
        let readonly = keys.flag("readonly")?;
        let formats = [("raw", ImageFormat::Raw), ("qcow2", ImageFormat::Qcow2)];
        let format = choice(&keys, "format", &formats)?.unwrap_or(ImageFormat::Raw);
        let engines =
            [("sync", EngineKind::Sync), ("thread", EngineKind::Thread), ("uring", EngineKind::Uring)];
        let mode = if readonly { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let modes = [("writeback", CacheMode::Writeback), ("writethrough", CacheMode::Writethrough)];
        let on_error = [
            ("report", OnHostError::Report),
            ("pause", OnHostError::Hold),
            ("pause-if-full", OnHostError::HoldIfFull),
        ];
        let disk = Self {
            path: keys.value("path").unwrap_or_default().into(),
            readonly,
            id: keys.parsed("id")?,
            format,
            backing: keys.value("backing").map(PathBuf::from),
            overlay: keys.value("overlay").map(PathBuf::from),
            options: RawOptions::new(mode)
                .engine(choice(&keys, "engine", &engines)?.unwrap_or_default())
                .direct(keys.flag("direct")?),
            cache: choice(&keys, "cache", &modes)?.unwrap_or_default(),
            on_error: choice(&keys, "on-error", &on_error)?.unwrap_or_default(),
            queues: keys.parsed_by("queues", queues)?.unwrap_or(1),
            limits: RateLimits::new(keys.parsed_by("limit", parse_rate)?, keys.parsed_by("ops", parse_rate)?),
        };
        disk.fits_together()?;
        Ok(disk)
    }

    /// Refuses keys that mean nothing for the format, or with each other.
    fn fits_together(&self) -> std::result::Result<(), KeyValueError> {
        let is_qcow2 = self.is_qcow2();
        let (key, reason) = if is_qcow2 && !cfg!(feature = "qcow2") {
            let key = if self.overlay.is_some() { "overlay" } else { "format" };
            (key, "needs a microvm that is built with the feature qcow2")
        } else if is_qcow2 && self.options.engine != EngineKind::Sync {
            ("engine", "is sync for qcow2 and overlays")
        } else if is_qcow2 && self.options.direct {
            ("direct", "is for raw disks without overlay")
        } else if self.overlay.is_some() && self.readonly {
            ("overlay", "takes what the guest writes, and readonly lets it write nothing: leave one out")
        } else if self.backing.is_some() && self.format != ImageFormat::Qcow2 {
            ("backing", "is for format=qcow2")
        } else {
            return Ok(());
        };
        Err(KeyValueError::Wrong { key: key.to_owned(), reason: reason.to_owned() })
    }

    /// Returns true if a failure of the host pauses the machine.
    pub fn pauses(&self) -> bool {
        self.on_error != OnHostError::Report
    }

    fn is_qcow2(&self) -> bool {
        self.overlay.is_some() || self.format == ImageFormat::Qcow2
    }

    /// The device, with this serial number, and a handle to resize it.
    pub fn device(&self, id: DiskId) -> Result<(Box<dyn LocalDevice>, BlkHandle)> {
        #[cfg(feature = "qcow2")]
        if self.is_qcow2() {
            return self.qcow2(id);
        }
        self.device_on(RawFile::open(&self.path, self.options)?, id)
    }

    #[cfg(feature = "qcow2")]
    fn qcow2(&self, id: DiskId) -> Result<(Box<dyn LocalDevice>, BlkHandle)> {
        let qcow2 = Qcow2Options::new(self.options.mode);
        let qcow2 = self.backing.iter().fold(qcow2, |options, folder| options.with_backing_folder(folder));
        let (disk, key, file) = match &self.overlay {
            Some(overlay) => (Qcow2::overlay(overlay, &self.path, self.format, &qcow2), "overlay", overlay),
            None => (Qcow2::open(&self.path, &qcow2), "path", &self.path),
        };
        self.device_on(disk.map_err(|e| format!("--disk {key}={}: {e}", file.display()))?, id)
    }

    fn device_on<D: ossature::block::Disk>(
        &self,
        disk: D,
        id: DiskId,
    ) -> Result<(Box<dyn LocalDevice>, BlkHandle)> {
        let device = Blk::new(disk, id).with_queues(self.queues).with_cache(self.cache);
        let device = device.with_on_error(self.on_error);
        let device = match self.limits {
            limits if limits == RateLimits::default() => device,
            limits => device.with_limiter(RateLimiter::new(limits)),
        };
        let handle = device.handle();
        Ok((Box::new(device), handle))
    }

    /// The file that takes what the guest writes.
    fn file(&self) -> &PathBuf {
        self.overlay.as_ref().unwrap_or(&self.path)
    }
}

fn queues(text: &str) -> std::result::Result<u16, &'static str> {
    text.parse().ok().filter(|queues| (1..=256).contains(queues)).ok_or("give a number from 1 to 256")
}

/// What the value of a key stands for.
fn choice<T: Copy>(
    keys: &KeyValues,
    key: &str,
    values: &[(&str, T)],
) -> std::result::Result<Option<T>, KeyValueError> {
    keys.parsed_by(key, |text| {
        let found = values.iter().find(|(name, _)| *name == text).map(|(_, value)| *value);
        let names: Vec<_> = values.iter().map(|(name, _)| *name).collect();
        found.ok_or_else(|| format!("give {}, not {text:?}", names.join(" or ")))
    })
}

/// Whoever writes to a disk has it alone. The lock on its file tells as much, but not who has it.
pub fn each_file_is_one_disk(disks: &[Disk]) -> Result<()> {
    // What is not there is told when it is opened.
    let file = |disk: &Disk| fs::metadata(disk.file()).ok().map(|file| (file.dev(), file.ino()));
    for (index, disk) in disks.iter().enumerate() {
        let is_same = |first: &&Disk| file(first).is_some() && file(first) == file(disk);
        let shares = |first: &&Disk| is_same(first) && !(first.readonly && disk.readonly);
        if let Some(first) = disks.iter().take(index).find(shares) {
            let (path, first) = (disk.file().display(), first.file().display());
            return Err(format!(
                "--disk path={path} is in use by another disk of this machine, path={first}; \
                 disks that share a file are readonly"
            )
            .into());
        }
    }
    Ok(())
}
