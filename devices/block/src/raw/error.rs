//! A disk file that cannot be used.

use std::io;
use std::path::PathBuf;

use super::OpenMode;

/// A disk file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskError {
    /// There is no such file.
    #[error("disk {path:?} does not exist")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// It is a folder, a pipe, a terminal or the like.
    #[error("disk {path:?} is {found}; a disk is a file or a block device")]
    NotAFile {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: &'static str,
    },
    /// This user may not open it.
    #[error("disk {path:?}: no permission to {}", match mode {
        OpenMode::ReadWrite => "read and write it; open it read-only or change its mode",
        OpenMode::ReadOnly => "read it",
    })]
    Permission {
        /// The file.
        path: PathBuf,
        /// How it was to be opened.
        mode: OpenMode,
        /// The kernel's answer.
        source: io::Error,
    },
    /// It is marked read-only, or its file system is, and it was to be opened read-write.
    #[error("disk {path:?} is read-only; open it read-only, or make it writable")]
    ReadOnlyFile {
        /// The file.
        path: PathBuf,
    },
    /// Another virtual machine has it, or another device of this one.
    #[error(
        "disk {path:?} is in use by another process, or by another disk of this one, which has locked it"
    )]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// It has no sector.
    #[error("disk {path:?} is empty; give it a size, a multiple of 512 bytes")]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The last sector is not whole.
    #[error("disk {path:?} is {len} bytes long, not a multiple of 512: pad it to {}", len.next_multiple_of(512))]
    Tail {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
    },
    /// Its size has changed since it was opened.
    #[error("disk {path:?} is {len} bytes long, and was {before} when it was opened")]
    Resized {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        len: u64,
        /// Its length when it was opened.
        before: u64,
    },
    /// A descriptor that was opened in a way that a disk cannot be used in.
    #[error("disk {path:?} is {found}; open it {wanted}")]
    Descriptor {
        /// `descriptor N`.
        path: PathBuf,
        /// How it was opened.
        found: &'static str,
        /// How it has to be opened.
        wanted: &'static str,
    },
    /// It is no image of its format, a damaged one, or one that needs what this crate does not have.
    #[error("disk {path:?}: {field} {problem}")]
    Image {
        /// The file.
        path: PathBuf,
        /// The field or table that is wrong.
        field: &'static str,
        /// What is wrong with it, and what to do.
        problem: String,
    },
    /// Its backing file may not be opened, or is not known well enough to be opened.
    #[error("disk {path:?}: backing file {name:?} {problem}")]
    Backing {
        /// The file that names it.
        path: PathBuf,
        /// The backing file as it is named there.
        name: String,
        /// Why, and what to do.
        problem: String,
    },
    /// Its file system has no `O_DIRECT`, or `/proc` is missing, by which the file is opened again.
    #[error("disk {path:?} cannot be used without the page cache (direct): {source}; leave that out")]
    NotDirect {
        /// The file.
        path: PathBuf,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Anything else.
    #[error("disk {path:?}: cannot {action} it: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: io::Error,
    },
}
