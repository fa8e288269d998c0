//! A machine that exists goes back to a snapshot of it.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;

use ossature_memory::vm_memory::mmap::MmapRegion;
use ossature_memory::vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, VolatileMemory};
use ossature_memory::{Dma, Ram, memory_file};

use super::chain::Layer;
use super::memory::{CHUNK, MemoryTable, PAGE, write_nonzero};
use super::{Shape, Snapshot, SnapshotError};

/// A snapshot whose memory is mapped, to be copied from: for a page, that takes a fraction of what a system call does, and
/// less than to drop it and have the guest fault it in again.
#[derive(Debug)]
pub(in crate::machine) struct Originals {
    snapshot: Snapshot,
    /// Each file of the chain, the last one first. None before a copy was made that nobody else can change.
    layers: Option<Vec<Mapped>>,
}

/// The memory of one file, or of a copy of it.
type Mapped = (Arc<MemoryTable>, MmapRegion);

impl Originals {
    /// Of a snapshot with a key, all memory is copied and checked when it is first needed.
    pub(in crate::machine) fn new(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        snapshot.expect_whole()?;
        let layers = snapshot.key().is_none().then(|| map(&snapshot)).transpose()?;
        Ok(Self { snapshot, layers })
    }

    /// Of a snapshot in memory that this process has just written, and nobody else has.
    pub(in crate::machine) fn own(snapshot: Snapshot) -> Result<Self, SnapshotError> {
        let layers = Some(map(&snapshot)?);
        Ok(Self { snapshot, layers })
    }

    /// Makes ready what is copied from.
    pub(in crate::machine) fn prepare(&mut self) -> Result<(), SnapshotError> {
        if self.layers.is_none() {
            let copy = memory_file().map_err(|source| SnapshotError::Io { part: "memfd", source })?;
            self.snapshot.merge_with(&copy, None)?;
            self.layers = Some(map(&Snapshot::from_file(copy)?)?);
        }
        Ok(())
    }

    /// Becomes a diff of what it is, when that is in its place; on an error before, it stays what it is. If there is a copy,
    /// what the diff has is copied, too, and checked.
    pub(in crate::machine) fn go_on(
        &mut self,
        diff: Snapshot,
        commit: impl FnOnce() -> Result<(), SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let added = match (&self.layers, diff.layers()?.into_iter().next()) {
            (Some(_), Some(layer)) if diff.key().is_some() => Some(map_layer(copied(&layer)?)?),
            (Some(_), Some(layer)) => Some(map_layer(layer)?),
            _ => None,
        };
        commit()?;
        self.snapshot = diff;
        self.layers.iter_mut().zip(added).for_each(|(layers, added)| layers.insert(0, added));
        Ok(())
    }

    pub(in crate::machine) fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Makes the pages at these guest addresses, ascending, what they are in the snapshot.
    pub(in crate::machine) fn copy_to(&self, ram: &Ram, pages: &[Range<u64>]) -> Result<(), SnapshotError> {
        let layers = self.layers.as_deref().unwrap_or_default();
        let Some(((full, _), diffs)) = layers.split_last() else { return Ok(()) };
        let dma = ram.dma();
        for piece in pages.iter().flat_map(|range| full.pieces_of(range)) {
            let in_full = piece.present.then_some(diffs.len());
            if diffs.is_empty() {
                self.copy(&dma, in_full, piece.addr, piece.offset, piece.len)?;
                continue;
            }
            // Runs of pages that are in the same file.
            let first = piece.at as usize / PAGE;
            let pages: Vec<usize> = (first..first + piece.len as usize / PAGE).collect();
            let source = |page: &usize| {
                diffs.iter().position(|(memory, _)| memory.has(piece.chunk, *page)).or(in_full)
            };
            for run in pages.chunk_by(|one, next| source(one) == source(next)) {
                let Some(page) = run.first() else { continue };
                let at = ((page - first) * PAGE) as u64;
                let len = (run.len() * PAGE) as u64;
                self.copy(&dma, source(page), piece.addr + at, piece.offset + at, len)?;
            }
        }
        Ok(())
    }

    /// Copies from a file to guest memory, or zeros if there is none.
    fn copy(
        &self,
        dma: &Dma,
        layer: Option<usize>,
        addr: u64,
        offset: u64,
        len: u64,
    ) -> Result<(), SnapshotError> {
        let memory = layer.zip(self.layers.as_ref()).and_then(|(layer, layers)| layers.get(layer));
        let Some((_, memory)) = memory else {
            return zero(dma, addr, len);
        };
        let damaged = || SnapshotError::Damaged { field: "memory", reason: "as long as its slots are not" };
        let from = memory.get_slice(offset as usize, len as usize).map_err(|_| damaged())?;
        let to = dma.memory().get_slice(GuestAddress(addr), len as usize).map_err(|_| damaged())?;
        from.copy_to_volatile_slice(to);
        Ok(())
    }
}

/// Maps the memory of each file of a chain.
fn map(snapshot: &Snapshot) -> Result<Vec<Mapped>, SnapshotError> {
    snapshot.layers()?.into_iter().map(map_layer).collect()
}

fn map_layer(Layer { file, start, memory }: Layer) -> Result<Mapped, SnapshotError> {
    let len = usize::try_from(memory.len()).map_err(|_| SnapshotError::TooLarge)?;
    let flags = libc::MAP_SHARED | libc::MAP_NORESERVE;
    let mapped = MmapRegion::build(Some(FileOffset::from_arc(file, start)), len, libc::PROT_READ, flags);
    let failed = |error| SnapshotError::Io { part: "memory", source: std::io::Error::other(error) };
    Ok((memory, mapped.map_err(failed)?))
}

/// The pages of a diff, checked, in memory that nobody else can change.
fn copied(Layer { file, start, memory }: &Layer) -> Result<Layer, SnapshotError> {
    let failed = |source| SnapshotError::Io { part: "memfd", source };
    let copy = memory_file().map_err(failed)?;
    copy.set_len(memory.len()).map_err(failed)?;
    let mut buffer = vec![0; CHUNK as usize];
    for (index, pages) in memory.pages() {
        let Some(chunk) = memory.read_pages(&mut &**file, *start, index, &mut buffer)? else { continue };
        for run in pages.bytes() {
            let at = chunk.offset + run.start as u64;
            write_nonzero(&copy, at, buffer.get(run).unwrap_or_default())?;
        }
    }
    Ok(Layer { file: Arc::new(copy), start: 0, memory: Arc::clone(memory) })
}

/// Fills guest memory with zeros.
fn zero(dma: &Dma, addr: u64, len: u64) -> Result<(), SnapshotError> {
    const ZEROS: &[u8] = &[0; 64 << 10];
    for at in (0..len).step_by(ZEROS.len()) {
        let piece = (len - at).min(ZEROS.len() as u64) as usize;
        dma.write(GuestAddress(addr + at), ZEROS.get(..piece).unwrap_or_default())?;
    }
    Ok(())
}

impl Snapshot {
    /// Fails if RAM came or went.
    pub(in crate::machine) fn expect_slots(&self, ram: &Ram) -> Result<(), SnapshotError> {
        self.memory.expect_slots(ram).map_err(|_| SnapshotError::OtherSlots)
    }

    /// Fails if a machine of this shape and memory is not what it is of.
    pub(in crate::machine) fn expect_machine(&self, shape: &Shape, ram: &Ram) -> Result<(), SnapshotError> {
        self.expect_slots(ram)?;
        let (found, asked) = (self.shape.cpus, shape.cpus);
        if found != asked {
            return Err(SnapshotError::OtherCpus { found, asked });
        }
        if self.shape.numa != shape.numa {
            return Err(SnapshotError::OtherNuma);
        }
        let ids: BTreeSet<&str> = shape.devices.iter().map(|(id, _)| id.as_str()).collect();
        let (missing, extra) = self.shape.difference(&ids);
        if !(missing.is_empty() && extra.is_empty()) {
            return Err(SnapshotError::OtherDevices { missing, extra });
        }
        match shape.devices.iter().find(|(id, place)| !self.shape.is_at(id, place)) {
            Some((id, _)) => Err(SnapshotError::OtherDevice { id: id.clone() }),
            None => Ok(()),
        }
    }
}
