//! The file of an image as the `imago` crate sees it: nothing but reads and writes of one open descriptor. It opens no
//! file, whatever an image names.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::{Arc, PoisonError, RwLock};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;

use super::header::{be32, be64};

/// An image file that is open: one layer of a chain.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) is_device: bool,
}

impl ImageFile {
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        Self { file, path, is_device }
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        use std::io::{Seek, SeekFrom};
        // Where a block device ends, only a seek tells.
        (&self.file).seek(SeekFrom::End(0))
    }
}

/// [`ImageFile`] for `imago`.
pub(super) struct ImageStorage {
    image: Arc<ImageFile>,
    /// Header, first-level table and table of refcount blocks: a write there is on the disk before and after others.
    pointers: Option<RwLock<[Range<u64>; 3]>>,
    helper: CommonStorageHelper,
}

impl ImageStorage {
    pub(super) fn new(image: Arc<ImageFile>) -> Self {
        Self { image, pointers: None, helper: CommonStorageHelper::default() }
    }

    /// One whose pointers to tables are at `pointers` at first.
    pub(super) fn with_pointers(image: Arc<ImageFile>, pointers: [Range<u64>; 3]) -> Self {
        Self { image, pointers: Some(RwLock::new(pointers)), helper: CommonStorageHelper::default() }
    }

    pub(super) fn image(&self) -> &ImageFile {
        &self.image
    }

    /// Where tables are has moved, if a header was written.
    fn learn(&self, header: &[u8]) {
        if let Some(pointers) = &self.pointers {
            let cluster = 1_u64 << be32(header, 20).clamp(9, 21);
            let (l1, refcounts) = (be64(header, 40), be64(header, 48));
            let l1 = l1..l1.saturating_add(u64::from(be32(header, 36)) * 8);
            let refcounts = refcounts..refcounts.saturating_add(u64::from(be32(header, 56)) * cluster);
            let ranges = [0..cluster, l1, refcounts];
            *pointers.write().unwrap_or_else(PoisonError::into_inner) = ranges;
        }
    }

    fn is_pointer(&self, offset: u64, len: u64) -> bool {
        let pointers =
            self.pointers.as_ref().map(|ranges| ranges.read().unwrap_or_else(PoisonError::into_inner));
        let end = offset.saturating_add(len);
        pointers.is_some_and(|ranges| ranges.iter().any(|range| range.start < end && offset < range.end))
    }
}

impl Storage for ImageStorage {
    fn size(&self) -> io::Result<u64> {
        self.image.len()
    }

    #[allow(unsafe_code)] // the trait's signature; nothing in it is unsafe
    unsafe fn pure_readv(&self, bufv: IoVectorMut<'_>, mut offset: u64) -> io::Result<()> {
        for mut buf in bufv.into_inner() {
            let mut rest = &mut *buf;
            while !rest.is_empty() {
                match self.image.file.read_at(rest, offset) {
                    // The contract: zeros beyond the end.
                    Ok(0) => {
                        rest.fill(0);
                        break;
                    }
                    Ok(n) => {
                        offset += n as u64;
                        rest = rest.split_at_mut(n).1;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    #[allow(unsafe_code)] // the trait's signature; nothing in it is unsafe
    unsafe fn pure_writev(&self, bufv: IoVector<'_>, mut offset: u64) -> io::Result<()> {
        let start = offset;
        let is_pointer = self.is_pointer(offset, bufv.len());
        if is_pointer {
            self.image.file.sync_data()?;
        }
        for buf in bufv.into_inner() {
            self.image.file.write_all_at(&buf, offset)?;
            if start == 0 && offset == 0 {
                self.learn(&buf);
            }
            offset += buf.len() as u64;
        }
        if is_pointer {
            self.image.file.sync_data()?;
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.image.file.sync_data()
    }

    #[allow(unsafe_code)] // the trait's signature; nothing in it is unsafe
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _: PreallocateMode) -> io::Result<()> {
        self.image.file.set_len(new_size)
    }
}

impl fmt::Debug for ImageStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ImageStorage").field(&self.image.path).finish()
    }
}

impl fmt::Display for ImageStorage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.image.path.display().fmt(f)
    }
}
