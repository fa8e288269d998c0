//! A chain of images that is locked and in use: reads, writes and space, through the tables that the `imago` crate
//! keeps. Data goes straight between guest memory and the file.

use std::io;
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};

use imago::format::PreallocateMode;
use imago::qcow2::Qcow2 as Format;
use imago::raw::Raw;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, Mapping};
use ossature_memory::{Dma, DmaIoError, Segments};

use super::chain::Layer;
use super::header::{self, Header};
use super::refcounts::Refcounts;
use super::storage::ImageStorage;
use super::tables;
use crate::DiskError;
use crate::raw::space;

/// Zeros for guest memory.
static ZEROS: [u8; 4096] = [0; 4096];
/// Compressed data is unpacked in pieces of this size at most.
const MAX_PIECE: u64 = 1 << 21;

/// What is in use.
pub(super) struct Image {
    /// Dropped only by [`close`](Image::close): dropping writes tables, which nothing may do after a failure or a panic.
    access: ManuallyDrop<FormatAccess<ImageStorage>>,
    cluster: u64,
    writable: bool,
    /// Some clusters are compressed, or were when the image was opened: what is written there gives them up.
    compressed: bool,
    /// The size of the disk below.
    base: u64,
    /// Tables have changed since the last flush.
    changed: AtomicBool,
    /// Clusters were given up since the last flush: they must not be used again before that is on the disk.
    freed: AtomicBool,
}

/// Part of the disk that does not read as zeros by its tables.
struct Used {
    offset: u64,
    len: u64,
    /// Where it is in the file, if it is there as it is and nobody else uses it.
    host: Option<u64>,
}

impl Image {
    /// Takes locked layers into use; with `writable` the first is written to, and marked as open until
    /// [`close`](Self::close). Refcounts of an image that was not closed are repaired.
    pub(super) fn open(layers: &[Layer], writable: bool) -> Result<Self, DiskError> {
        let Some((top, below)) = layers.split_first() else { return Err(no_layer()) };
        let mut access = None;
        for layer in below.iter().rev() {
            access = Some(open_layer(layer, access, false)?);
        }
        let base = below.first().map_or(Ok(0), Layer::capacity)?;
        let cluster = top.header.as_ref().map_or(512, Header::cluster_size);
        let compressed = writable && make_sure(top)?;
        let access = open_layer(top, access, writable)?;
        if writable && top.header.is_some() {
            header::mark_dirty(&top.image.file, true).map_err(|e| top.io_error("mark as open", e))?;
        }
        Ok(Self {
            access: ManuallyDrop::new(access),
            cluster,
            writable,
            compressed,
            base,
            changed: AtomicBool::new(false),
            freed: AtomicBool::new(false),
        })
    }

    /// Writes everything and takes the mark away. Without it, what is not flushed is lost, and the mark stays.
    pub(super) fn close(self, top: &Layer) -> Result<(), DiskError> {
        self.finish().map_err(|e| top.io_error("flush", e))?;
        drop(ManuallyDrop::into_inner(self.access));
        if self.writable && top.header.is_some() {
            header::mark_dirty(&top.image.file, false).map_err(|e| top.io_error("mark as closed", e))?;
        }
        Ok(())
    }

    /// Writes everything.
    pub(super) fn finish(&self) -> io::Result<()> {
        if !self.writable {
            return Ok(());
        }
        self.changed.store(true, Ordering::Relaxed);
        self.flush()
    }

    pub(super) fn access(&self) -> &FormatAccess<ImageStorage> {
        &self.access
    }

    pub(super) fn cluster(&self) -> u64 {
        self.cluster
    }

    pub(super) fn has_freed(&self) -> bool {
        self.freed.load(Ordering::Relaxed)
    }

    /// Reads from the start of the range as far as it is in one place.
    pub(super) fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        let (mapping, len) = self.access.get_mapping(offset, to.len())?;
        let to = to.take(len);
        match mapping {
            Mapping::Raw { storage, offset: at, .. } => {
                let image = storage.image();
                match mem.preadv(&image.file, to, at)? {
                    0 if at & !(self.cluster - 1) < image.len()? => zero(mem, to),
                    0 => Err(damaged("data behind the end of the file").into()),
                    n => Ok(n),
                }
            }
            Mapping::Zero { .. } => zero(mem, to),
            Mapping::Eof { .. } => Ok(0),
            _ => {
                let mut piece = vec![0; to.len().min(MAX_PIECE) as usize];
                self.access.read(&mut piece, offset)?;
                Ok(mem.scatter(to, &piece)?)
            }
        }
    }

    /// Returns true if a write to the range gives up what is compressed there.
    pub(super) fn gives_up(&self, offset: u64, len: u64) -> io::Result<bool> {
        Ok(self.compressed && self.is_compressed(offset, len)?)
    }

    /// As [`write`](Self::write), while nobody else uses the image: it may give clusters up.
    pub(super) fn write_alone(
        &mut self,
        mem: &Dma,
        from: Segments<'_>,
        offset: u64,
    ) -> Result<usize, DmaIoError> {
        if self.has_freed() {
            self.settle()?;
        }
        let gives_up = self.gives_up(offset, from.len())?;
        let written = self.write(mem, from, offset)?;
        if gives_up {
            self.freed.store(true, Ordering::Relaxed);
        }
        Ok(written)
    }

    /// Writes from the start of the range as far as it is in one place, which is found for it if it has none. Nothing was
    /// given up since the last flush, and nothing of the range is compressed, unless it is [alone](Self::write_alone).
    pub(super) fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError> {
        let mapping = self.access.prepare_data_mapping(offset, from.len(), true)?;
        let (len, at, image) = (mapping.length(), mapping.offset(), mapping.storage().image());
        let from = from.take(len);
        if mapping.is_nonblocking() {
            return image.write_from(mem, from, at);
        }
        // What is new comes into the tables only when all of it is there.
        let mut done = 0;
        while done < from.len() {
            match image.write_from(mem, from.skip(done), at + done)? {
                0 => return Err(io::Error::from(io::ErrorKind::WriteZero).into()),
                n => done += n as u64,
            }
        }
        self.access.commit_data_mapping(mapping)?;
        self.changed.store(true, Ordering::Release);
        Ok(len as usize)
    }

    /// Data before tables, tables before the end.
    pub(super) fn flush(&self) -> io::Result<()> {
        let changed = self.changed.swap(false, Ordering::AcqRel);
        let done = self.flush_tables(changed);
        if changed && done.is_err() {
            self.changed.store(true, Ordering::Release);
        }
        done
    }

    fn flush_tables(&self, changed: bool) -> io::Result<()> {
        self.access.sync()?;
        if changed {
            self.access.flush()?;
            self.access.sync()?;
        }
        Ok(())
    }

    /// Makes what was given up free to be used again. Nobody else uses the image meanwhile.
    pub(super) fn settle(&mut self) -> io::Result<()> {
        self.changed.store(true, Ordering::Release);
        self.flush()?;
        self.freed.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Gives up the clusters in the range, which read as zeros then.
    pub(super) fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let end = offset + len;
        for used in self.used(offset, len)? {
            let (start, stop) = self.whole(used.offset, used.offset + used.len, end);
            if start < stop {
                self.give_up(&used, start, stop)?;
            }
        }
        Ok(())
    }

    /// Makes the range read as zeros, and gives up its clusters with `unmap`.
    pub(super) fn write_zeroes(&mut self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        let end = offset + len;
        for used in self.used(offset, len)? {
            let (from, to) = (used.offset, used.offset + used.len);
            let (start, stop) = self.whole(from, to, end);
            self.changed.store(true, Ordering::Release);
            if start >= stop {
                self.write_zero_data(from, to)?;
                continue;
            }
            self.write_zero_data(from, start)?;
            self.write_zero_data(stop, to)?;
            if unmap {
                self.give_up(&used, start, stop)?;
            } else {
                if self.gives_up(start, stop - start)? {
                    self.freed.store(true, Ordering::Relaxed);
                }
                self.access.write_zeroes(start, stop - start)?;
            }
        }
        Ok(())
    }

    /// Writes zeros as data, for parts of clusters: `imago` 0.2.6 miscounts where such a part is in the disk's last one.
    fn write_zero_data(&mut self, from: u64, to: u64) -> io::Result<()> {
        for at in (from..to).step_by(ZEROS.len()) {
            let len = (to - at).min(ZEROS.len() as u64);
            self.write_bytes_alone(ZEROS.get(..len as usize).unwrap_or_default(), at)?;
        }
        Ok(())
    }

    /// As [`write_alone`](Self::write_alone), of bytes that no guest has.
    pub(super) fn write_bytes_alone(&mut self, bytes: &[u8], at: u64) -> io::Result<()> {
        // Cluster after cluster: one may give up what the next would take.
        let (mut at, mut left) = (at, bytes);
        while !left.is_empty() {
            let len = (self.cluster - at % self.cluster).min(left.len() as u64);
            let (piece, rest) = left.split_at(len as usize);
            if self.has_freed() {
                self.settle()?;
            }
            if self.gives_up(at, len)? {
                self.freed.store(true, Ordering::Relaxed);
            }
            self.changed.store(true, Ordering::Release);
            self.access.write(piece, at)?;
            (at, left) = (at + len, rest);
        }
        Ok(())
    }

    /// Grows or shrinks the disk. What it gains reads as zeros.
    pub(super) fn resize(&mut self, capacity: u64) -> io::Result<()> {
        let before = self.access.size();
        self.changed.store(true, Ordering::Release);
        if capacity < before {
            self.freed.store(true, Ordering::Relaxed);
            self.access.resize_shrink(capacity)?;
        } else {
            // A base that is longer than the disk would show.
            let mode = if self.base > before { PreallocateMode::Zero } else { PreallocateMode::None };
            self.access.resize_grow(capacity, mode)?;
            // The last cluster may hold what was there before the disk shrank.
            let rest = before.next_multiple_of(self.cluster).min(capacity) - before;
            if rest != 0 {
                self.write_zeroes(before, rest, false)?;
            }
        }
        self.settle()
    }

    /// Unmaps the data clusters of the range, so that the base shows.
    pub(super) fn clear(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.changed.store(true, Ordering::Release);
        self.freed.store(true, Ordering::Relaxed);
        self.access.discard_to_backing(offset, len)
    }

    /// Returns true if some of the range is compressed, here or in a base.
    fn is_compressed(&self, offset: u64, len: u64) -> io::Result<bool> {
        let (mut at, end) = (offset, offset + len);
        while at < end {
            match self.access.get_mapping(at, end - at)? {
                (Mapping::Special { .. }, _) => return Ok(true),
                (_, 0) => break,
                (_, len) => at += len,
            }
        }
        Ok(false)
    }

    /// Unmaps whole clusters and gives their space back to the host.
    fn give_up(&mut self, used: &Used, start: u64, stop: u64) -> io::Result<()> {
        self.changed.store(true, Ordering::Release);
        self.freed.store(true, Ordering::Relaxed);
        if let Some(host) = used.host {
            let at = host + (start - used.offset);
            // To the end of the last cluster, which may be longer than the disk.
            let len = (stop - start).next_multiple_of(self.cluster);
            let Ok((Mapping::Raw { storage, .. }, _)) = self.access.get_mapping(start, 1) else {
                return Err(damaged("a mapping that changes"));
            };
            let image = storage.image();
            space::discard(&image.file, image.is_device, at, len)?;
            #[cfg(test)]
            image.journal.write(&image.file, at, len as usize);
        }
        self.access.discard_to_zero(start, stop - start)
    }

    /// The whole clusters in a part of the disk; the last may be cut off by the end of the disk.
    fn whole(&self, start: u64, stop: u64, end: u64) -> (u64, u64) {
        let first = start.next_multiple_of(self.cluster);
        let last = if stop == end && end == self.access.size() { stop } else { stop & !(self.cluster - 1) };
        (first, last)
    }

    /// The parts of the range that take space, here or in a base.
    fn used(&self, offset: u64, len: u64) -> io::Result<Vec<Used>> {
        let (mut at, end, mut list) = (offset, offset + len, Vec::<Used>::new());
        while at < end {
            let (mapping, len) = self.access.get_mapping(at, end - at)?;
            let host = match mapping {
                Mapping::Eof { .. } => break,
                Mapping::Raw { offset, writable: true, .. } => Some(Some(offset)),
                Mapping::Zero { .. } => None,
                _ => Some(None),
            };
            match (host, list.last_mut()) {
                (Some(None), Some(last)) if last.host.is_none() && last.offset + last.len == at => {
                    last.len += len
                }
                (Some(host), _) => list.push(Used { offset: at, len, host }),
                (None, _) => {}
            }
            at += len;
        }
        Ok(list)
    }
}

/// Makes sure that nothing is written to an image whose tables are not in order. Refcounts of an image that was not
/// closed are repaired. Returns true if some clusters are compressed.
fn make_sure(layer: &Layer) -> Result<bool, DiskError> {
    let Some(header) = layer.read_again()? else { return Ok(false) };
    let counts = Refcounts::count(&layer.image, &header, layer.len()?, header.dirty)?;
    let compressed = counts.has_compressed();
    if header.dirty {
        counts.rebuild()?;
        header::mark_dirty(&layer.image.file, false).map_err(|e| layer.io_error("repair", e))?;
    } else {
        counts.verify()?;
    }
    Ok(compressed)
}

/// Opens one image over what it is based on.
fn open_layer(
    layer: &Layer,
    below: Option<FormatAccess<ImageStorage>>,
    write: bool,
) -> Result<FormatAccess<ImageStorage>, DiskError> {
    let io = |source| layer.io_error("open", source);
    let image = std::sync::Arc::clone(&layer.image);
    let Some(header) = layer.read_again()? else {
        let raw = Raw::open_image(ImageStorage::new(image), write).map_err(io)?;
        return Ok(FormatAccess::new(raw));
    };
    if !write {
        tables::check_l1(&image.file, &image.path, &header, layer.len()?)?;
    }
    let storage = match write {
        true => ImageStorage::writable(image, &header)?,
        false => ImageStorage::new(image),
    };
    let format = Format::<ImageStorage>::builder(storage).write(write).backing(below).data_file(None);
    let format = format.open(DenyImplicitOpenGate::default()).map_err(io)?;
    Ok(FormatAccess::new(format))
}

fn zero(mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError> {
    let (to, mut done) = (to.take(1 << 16), 0);
    while done < to.len() {
        done += mem.scatter(to.skip(done), &ZEROS)? as u64;
    }
    Ok(done as usize)
}

fn damaged(found: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the qcow2 image is damaged: its tables show {found}"))
}

fn no_layer() -> DiskError {
    let source = io::Error::from(io::ErrorKind::InvalidInput);
    DiskError::Io { path: std::path::PathBuf::new(), action: "open", source }
}
