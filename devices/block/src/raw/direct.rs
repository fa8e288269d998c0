//! I/O past the host's page cache, and which transfers can have it.
//!
//! The kernel keeps both ways to a file coherent, so that a transfer that is not aligned can go through the page cache.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ossature_memory::Segments;

use super::{DiskError, OpenMode};
use crate::sys;

/// A file that is open with `O_DIRECT`, and what it asks of transfers: powers of two, in bytes.
#[derive(Debug)]
pub(crate) struct Direct {
    file: File,
    /// Of addresses in memory.
    memory: u32,
    /// Of places in the file, and of lengths.
    offset: u32,
}

impl Direct {
    /// Opens the file of `buffered` once more.
    pub(super) fn open(buffered: &File, path: &Path, mode: OpenMode) -> Result<Self, DiskError> {
        let refused = |source| DiskError::NotDirect { path: path.to_owned(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(mode == OpenMode::ReadWrite)
            .custom_flags(libc::O_DIRECT)
            .open(format!("/proc/self/fd/{}", buffered.as_raw_fd()))
            .map_err(refused)?;
        let (memory, offset) = sys::direct_alignment(&file).map_err(refused)?;
        Ok(Self { file, memory, offset })
    }

    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// What places in the file have to be multiples of.
    pub(super) fn offset_align(&self) -> u32 {
        self.offset
    }

    /// Returns true if the transfer is aligned. Guest memory is mapped page by page, so that its addresses tell.
    pub(crate) fn takes(&self, segments: Segments<'_>, offset: u64) -> bool {
        let is_multiple = |value: u64, align: u32| value & u64::from(align.wrapping_sub(1)) == 0;
        is_multiple(offset, self.offset)
            && segments.iter().all(|segment| {
                is_multiple(segment.addr.0, self.memory) && is_multiple(segment.len.into(), self.offset)
            })
    }
}
