//! What of memory a diff has: the pages that were written.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;

use ossature_bus::state::StateError;
use ossature_memory::Ram;
use ossature_memory::vm_memory::GuestAddress;

use super::{CHUNK, Chunk, MemoryTable, PAGE, failed, write_nonzero};
use crate::machine::snapshot::error::SnapshotError;
use crate::machine::snapshot::pages::{self, PageSet};
use crate::machine::snapshot::source::SnapshotSource;

impl MemoryTable {
    /// A table of a diff with these pages, guest addresses of which are ascending, whose checksums are not known yet.
    pub(in crate::machine::snapshot) fn of_pages(ram: &Ram, dirty: &[Range<u64>]) -> Option<Self> {
        let mut table = Self::of(ram)?;
        let mut pages = BTreeMap::<usize, PageSet>::new();
        for piece in dirty.iter().flat_map(|range| table.pieces_of(range)) {
            let first = piece.at as usize / PAGE;
            pages.entry(piece.chunk).or_default().insert(first..first + piece.len as usize / PAGE);
        }
        for chunk in pages.keys() {
            table.chunks.get_mut(*chunk).into_iter().for_each(|chunk| *chunk = Some(0));
        }
        table.pages = Some(pages);
        Some(table)
    }

    /// A table of the same slots, of memory that is zero.
    pub(in crate::machine::snapshot) fn empty(&self) -> Self {
        Self { slots: self.slots.clone(), chunks: vec![None; self.chunks.len()], pages: None, leaves: None }
    }

    /// Returns true if it is of a diff.
    pub(in crate::machine::snapshot) fn is_diff(&self) -> bool {
        self.pages.is_some()
    }

    /// Returns true if it has the same slots.
    pub(in crate::machine::snapshot) fn is_beside(&self, other: &Self) -> bool {
        self.slots == other.slots
    }

    /// The pages of a diff, by chunk.
    pub(in crate::machine::snapshot) fn pages(&self) -> impl Iterator<Item = (usize, &PageSet)> {
        self.pages.iter().flatten().map(|(chunk, pages)| (*chunk, pages))
    }

    /// Returns true if a diff has this page of a chunk.
    pub(in crate::machine::snapshot) fn has(&self, chunk: usize, page: usize) -> bool {
        self.pages.as_ref().and_then(|pages| pages.get(&chunk)).is_some_and(|pages| pages.contains(page))
    }

    pub(super) fn load_pages(&self, bytes: &[u8]) -> Result<BTreeMap<usize, PageSet>, StateError> {
        let wrong = |reason| StateError::Inconsistent { field: "pages that were written", reason };
        let mut sets = bytes.chunks(pages::BYTES);
        let mut pages = BTreeMap::new();
        for (index, (chunk, checksum)) in self.chunks().enumerate() {
            if checksum.is_none() {
                continue;
            }
            let set = sets.next().and_then(|set| set.try_into().ok()).ok_or(wrong("some are missing"))?;
            let set = PageSet::load(set);
            let mut all = PageSet::default();
            all.insert(0..chunk.len / PAGE);
            if set.is_empty() || !set.without(&all).is_empty() {
                return Err(wrong("a chunk has none, or one that is not in it"));
            }
            pages.insert(index, set);
        }
        if sets.next().is_some() { Err(wrong("there are more than chunks")) } else { Ok(pages) }
    }

    /// Writes the pages that it has.
    pub(super) fn write_pages(&mut self, ram: &Ram, file: &File, start: u64) -> Result<(), SnapshotError> {
        let dma = ram.dma();
        let all: Vec<(Chunk, Option<u32>)> = self.chunks().collect();
        let mut buffer = vec![0; CHUNK as usize];
        let written = self.pages.take();
        for (index, pages) in written.iter().flatten() {
            let Some((chunk, _)) = all.get(*index) else { continue };
            for run in pages.bytes() {
                let bytes = buffer.get_mut(run.clone()).unwrap_or_default();
                dma.read(GuestAddress(chunk.addr + run.start as u64), bytes)?;
                write_nonzero(file, start + chunk.offset + run.start as u64, bytes)?;
            }
            self.note(*index, pages.bytes().map(|run| buffer.get(run).unwrap_or_default()));
        }
        self.pages = written;
        Ok(())
    }

    /// Reads a chunk and compares it with its checksum: all of it, or in a diff its pages, each to where it is in the
    /// chunk. `None` if there is nothing of it.
    pub(in crate::machine::snapshot) fn read_pages(
        &self,
        source: &mut dyn SnapshotSource,
        start: u64,
        index: usize,
        buffer: &mut [u8],
    ) -> Result<Option<Chunk>, SnapshotError> {
        let Some((chunk, Some(_))) = self.chunk(index) else { return Ok(None) };
        let mut whole = PageSet::default();
        let pages = self.pages.as_ref().and_then(|pages| pages.get(&index));
        if pages.is_none() {
            whole.insert(0..chunk.len / PAGE);
        }
        let pages = pages.unwrap_or(&whole);
        for run in pages.bytes() {
            let at = start + chunk.offset + run.start as u64;
            source.fetch(at, buffer.get_mut(run).unwrap_or_default()).map_err(failed)?;
        }
        self.check(index, pages.bytes().map(|run| buffer.get(run).unwrap_or_default()))?;
        Ok(Some(chunk))
    }
}
