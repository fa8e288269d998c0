//! The file of an image as the `imago` crate sees it: nothing but reads and writes of one open descriptor. It opens no
//! file, whatever an image names.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use imago::Storage;
use imago::io_buffers::{IoVector, IoVectorMut};
use imago::storage::PreallocateMode;
use imago::storage::drivers::CommonStorageHelper;
use ossature_memory::{Dma, DmaIoError, Segments};

use super::header::{Header, be32, be64};
use super::tables::{OFFSET, read_table};
use crate::DiskError;

/// An image file that is open: one layer of a chain.
#[derive(Debug)]
pub(super) struct ImageFile {
    pub(super) file: File,
    pub(super) path: PathBuf,
    pub(super) is_device: bool,
    /// Writes of data that have ended.
    written: AtomicU64,
    /// So many of them are known to survive a power cut.
    synced: AtomicU64,
    #[cfg(test)]
    pub(super) journal: super::tests::Journal,
}

impl ImageFile {
    pub(super) fn new(file: File, path: PathBuf) -> Self {
        let is_device = file.metadata().is_ok_and(|meta| meta.file_type().is_block_device());
        Self {
            file,
            path,
            is_device,
            written: AtomicU64::new(0),
            synced: AtomicU64::new(0),
            #[cfg(test)]
            journal: Default::default(),
        }
    }

    pub(super) fn len(&self) -> io::Result<u64> {
        use std::io::{Seek, SeekFrom};
        // Where a block device ends, only a seek tells.
        (&self.file).seek(SeekFrom::End(0))
    }

    /// Writes a guest's data. Returns the bytes written.
    pub(super) fn write_from(&self, mem: &Dma, from: Segments<'_>, at: u64) -> Result<usize, DmaIoError> {
        let written = mem.pwritev(&self.file, from, at)?;
        #[cfg(test)]
        self.journal.write(&self.file, at, written);
        self.written.fetch_add(1, Ordering::Release);
        Ok(written)
    }

    /// What was written before this call survives a power cut when it returns.
    fn sync(&self) -> io::Result<()> {
        let written = self.written.load(Ordering::Acquire);
        self.file.sync_data()?;
        #[cfg(test)]
        self.journal.sync();
        self.synced.fetch_max(written, Ordering::AcqRel);
        Ok(())
    }

    /// The same for data alone: no system call if none was written since the last [`sync`](Self::sync).
    fn sync_data(&self) -> io::Result<()> {
        let (synced, written) = (self.synced.load(Ordering::Acquire), self.written.load(Ordering::Acquire));
        if synced < written { self.sync() } else { Ok(()) }
    }
}

/// [`ImageFile`] for `imago`.
pub(super) struct ImageStorage {
    image: Arc<ImageFile>,
    /// Where the tables are, of an image that is written to.
    tables: Option<RwLock<Tables>>,
    helper: CommonStorageHelper,
}

/// Where an image has its tables.
struct Tables {
    /// Header, first-level table and table of refcount blocks: a write there is on the disk after all that was written before
    /// it, and before all that comes after it.
    pointers: [Range<u64>; 3],
    /// Second-level tables: a write there is on the disk after all data that was written before it.
    second: HashSet<u64>,
}

/// What is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Written {
    Data,
    Table,
    Pointer,
}

impl Tables {
    /// Where tables are has moved, if a header was written.
    fn learn_header(&mut self, header: &[u8]) {
        let cluster = 1_u64 << be32(header, 20).clamp(9, 21);
        let (l1, refcounts) = (be64(header, 40), be64(header, 48));
        let l1 = l1..l1.saturating_add(u64::from(be32(header, 36)) * 8);
        let refcounts = refcounts..refcounts.saturating_add(u64::from(be32(header, 56)) * cluster);
        self.pointers = [0..cluster, l1, refcounts];
    }

    /// There are new second-level tables, if entries of the first level are written.
    fn learn_entries(&mut self, offset: u64, written: &[u8]) {
        let [_, l1, _] = &self.pointers;
        let entries = (offset..).step_by(8).zip(written.chunks_exact(8));
        let new = entries.filter(|(at, _)| l1.contains(at)).map(|(_, entry)| be64(entry, 0) & OFFSET);
        self.second.extend(new.filter(|table| *table != 0));
    }

    fn kind(&self, offset: u64, len: u64) -> Written {
        let end = offset.saturating_add(len);
        if self.pointers.iter().any(|range| range.start < end && offset < range.end) {
            Written::Pointer
        } else if self.second.contains(&offset) {
            Written::Table
        } else {
            Written::Data
        }
    }
}

impl ImageStorage {
    pub(super) fn new(image: Arc<ImageFile>) -> Self {
        Self { image, tables: None, helper: CommonStorageHelper::default() }
    }

    /// One that is written to.
    pub(super) fn writable(image: Arc<ImageFile>, header: &Header) -> Result<Self, DiskError> {
        let (at, entries) = (header.l1_offset, header.l1_entries.into());
        let l1 = read_table(&image.file, &image.path, "L1 table", at, entries)?;
        let second = l1.iter().map(|entry| entry & OFFSET).filter(|table| *table != 0).collect();
        let tables = Some(RwLock::new(Tables { pointers: header.pointers(), second }));
        Ok(Self { image, tables, helper: CommonStorageHelper::default() })
    }

    pub(super) fn image(&self) -> &ImageFile {
        &self.image
    }

    fn kind(&self, offset: u64, len: u64) -> Written {
        let tables = self.tables.as_ref().map(|tables| tables.read().unwrap_or_else(PoisonError::into_inner));
        tables.map_or(Written::Data, |tables| tables.kind(offset, len))
    }

    /// Pointers were written.
    fn learn(&self, offset: u64, written: &[u8]) {
        if let Some(tables) = &self.tables {
            let mut tables = tables.write().unwrap_or_else(PoisonError::into_inner);
            tables.learn_entries(offset, written);
            if offset == 0 {
                tables.learn_header(written);
            }
        }
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
        let kind = self.kind(offset, bufv.len());
        match kind {
            Written::Data => {}
            Written::Table => self.image.sync_data()?,
            Written::Pointer => self.image.sync()?,
        }
        for buf in bufv.into_inner() {
            self.image.file.write_all_at(&buf, offset)?;
            #[cfg(test)]
            self.image.journal.write(&self.image.file, offset, buf.len());
            if kind == Written::Pointer {
                self.learn(offset, &buf);
            }
            offset += buf.len() as u64;
        }
        match kind {
            Written::Data => _ = self.image.written.fetch_add(1, Ordering::Release),
            Written::Table => {}
            Written::Pointer => self.image.sync()?,
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.image.sync()
    }

    #[allow(unsafe_code)] // the trait's signature; nothing in it is unsafe
    unsafe fn invalidate_cache(&self) -> io::Result<()> {
        Ok(())
    }

    fn get_storage_helper(&self) -> &CommonStorageHelper {
        &self.helper
    }

    fn resize(&self, new_size: u64, _: PreallocateMode) -> io::Result<()> {
        self.image.file.set_len(new_size)?;
        #[cfg(test)]
        self.image.journal.set_len(new_size);
        Ok(())
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
