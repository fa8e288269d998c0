//! Guest memory in a snapshot: what of it is there, how it gets there, and how it gets out again. Its section is
//! `memory`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, FilePiece, MapFileError, Ram, RamConfig, RamSlot, map_file};

use super::error::SnapshotError;
use super::header::ALIGN;
use super::pages::{self, PageSet};
use super::source::SnapshotSource;
use super::tree::Leaves;

mod checked;
mod diff;

/// The section's id.
pub(super) const ID: &str = "memory";

const KIND: &str = "org.ossature.memory";
/// Of a diff; all others have version 1.
const VERSION: u16 = 2;
const SLOTS: Field = Field::new(1, "slots");
const PRESENT: Field = Field::new(2, "chunks that are not zero");
const CHECKSUMS: Field = Field::new(3, "checksums");
const PAGES: Field = Field::new(4, "pages that were written");
const ADDRESS: Field = Field::new(1, "address of a slot");
const SIZE: Field = Field::new(2, "size of a slot");

/// Memory is checked, and left out if it is zero, in pieces of this many bytes.
pub(super) const CHUNK: u64 = 2 << 20;
/// What is zero within a chunk is a hole in pieces of this many bytes.
pub(super) const PAGE: usize = 4096;
/// More than machines have.
const MAX_SLOTS: usize = 512;
/// 2 TiB of memory.
pub(super) const MAX_CHUNKS: usize = 1 << 20;
/// Into how many mappings memory is cut, so that what is zero is no page of the file. Each takes the kernel some
/// microseconds.
pub(super) const MAX_PIECES: usize = 256;

/// Contiguous guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Slot {
    addr: u64,
    size: u64,
    /// Of its first byte, from the beginning of the file's memory.
    offset: u64,
}

impl Slot {
    /// The pieces that it is checked in: guest address, offset and length of each.
    fn chunks(self) -> impl Iterator<Item = Chunk> {
        let Self { addr, size, offset } = self;
        (0..size.div_ceil(CHUNK)).map(move |n| {
            let at = n * CHUNK;
            Chunk { addr: addr + at, offset: offset + at, len: CHUNK.min(size - at) as usize }
        })
    }
}

/// What is checked, and left out if it is zero, as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    pub(super) addr: u64,
    pub(super) offset: u64,
    pub(super) len: usize,
}

/// Some of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    /// Which chunk, and how far it is from its beginning.
    pub(super) chunk: usize,
    pub(super) at: u64,
    /// Guest address.
    pub(super) addr: u64,
    pub(super) len: u64,
    /// Of its first byte, from the beginning of the file's memory.
    pub(super) offset: u64,
    /// True if the file has something of the chunk.
    pub(super) present: bool,
}

/// A chunk where it is in the file, and its checksum if it is not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PlacedChunk {
    pub(super) addr: u64,
    pub(super) offset: u64,
    pub(super) len: usize,
    pub(super) checksum: Option<u32>,
}

/// What the file has of guest memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MemoryTable {
    slots: Vec<Slot>,
    /// For each chunk: its checksum if it is not zero; in a diff, that of the pages that are there, if there are some.
    chunks: Vec<Option<u32>>,
    /// In a diff: the pages of each chunk that has some.
    pages: Option<BTreeMap<usize, PageSet>>,
    /// With a key: what is checked in place of the checksums.
    leaves: Option<Leaves>,
}

impl MemoryTable {
    /// A table of memory that is zero. `None` if it is more than can be.
    pub(super) fn of(ram: &Ram) -> Option<Self> {
        Self::of_slots(&ram.slots().collect::<Vec<_>>())
    }

    /// The same of these slots.
    pub(super) fn of_slots(slots: &[RamSlot]) -> Option<Self> {
        Self::with_slots(slots.iter().map(|slot| (slot.guest_addr, slot.size)))
    }

    /// With each slot's beginning on a boundary in the file.
    fn with_slots(slots: impl Iterator<Item = (u64, u64)>) -> Option<Self> {
        let (mut placed, mut offset, mut chunks): (Vec<Slot>, u64, u64) = (Vec::new(), 0, 0);
        for (addr, size) in slots {
            let free = placed.last().is_none_or(|last| last.addr + last.size <= addr);
            addr.checked_add(size).filter(|_| free && size > 0)?;
            placed.push(Slot { addr, size, offset });
            offset = offset.checked_add(size)?.checked_next_multiple_of(ALIGN)?;
            chunks = chunks.checked_add(size.div_ceil(CHUNK)).filter(|all| *all <= MAX_CHUNKS as u64)?;
        }
        let fits = (1..=MAX_SLOTS).contains(&placed.len());
        fits.then(|| Self { slots: placed, chunks: vec![None; chunks as usize], pages: None, leaves: None })
    }

    /// The longest that it can become.
    pub(super) fn full(&self) -> Self {
        let chunks = match &self.pages {
            Some(_) => self.chunks.clone(),
            None => vec![Some(0); self.chunks.len()],
        };
        Self { chunks, ..self.clone() }
    }

    /// Bytes of the file that memory takes.
    pub(super) fn len(&self) -> u64 {
        self.slots.last().map_or(0, |slot| slot.offset + slot.size)
    }

    /// Where each slot begins, and its size.
    pub(super) fn slots(&self) -> impl Iterator<Item = (u64, u64)> {
        self.slots.iter().map(|slot| (slot.addr, slot.size))
    }

    /// Bytes of guest memory.
    pub(super) fn size(&self) -> u64 {
        self.slots.iter().map(|slot| slot.size).sum()
    }

    pub(super) fn save(&self) -> SavedState<'static> {
        let mut present = vec![0u8; self.chunks.len().div_ceil(8)];
        for (index, _) in self.chunks.iter().enumerate().filter(|(_, chunk)| chunk.is_some()) {
            if let Some(byte) = present.get_mut(index / 8) {
                *byte |= 1 << (index % 8);
            }
        }
        let checksums: Vec<u8> = self.chunks.iter().flatten().flat_map(|crc| crc.to_le_bytes()).collect();
        let version = if self.is_diff() { VERSION } else { 1 };
        let mut fields = Encoder::new(KIND, version);
        fields.list(SLOTS, &self.slots, |fields, slot| {
            fields.u64(ADDRESS, slot.addr).u64(SIZE, slot.size);
        });
        fields.bytes(PRESENT, &present).bytes(CHECKSUMS, &checksums);
        if let Some(pages) = &self.pages {
            let pages: Vec<u8> = pages.values().flat_map(PageSet::save).collect();
            fields.bytes(PAGES, &pages);
        }
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let inconsistent = |field, reason| StateError::Inconsistent { field, reason };
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let slots = fields.list(SLOTS, MAX_SLOTS, |fields| Ok((fields.u64(ADDRESS)?, fields.u64(SIZE)?)))?;
        let present = fields.bytes(PRESENT, MAX_CHUNKS / 8)?;
        let checksums = fields.bytes(CHECKSUMS, MAX_CHUNKS * 4)?;
        let is_diff = state.version > 1;
        let pages = is_diff.then(|| fields.bytes(PAGES, MAX_CHUNKS * pages::BYTES)).transpose()?;
        fields.finish()?;
        if slots.iter().any(|(addr, size)| (addr | size) % PAGE as u64 != 0) {
            return Err(inconsistent("slots", "one does not consist of whole pages"));
        }
        if slots.first().is_none_or(|(addr, _)| *addr != 0) {
            return Err(inconsistent("slots", "none begins at 0"));
        }
        let table = Self::with_slots(slots.into_iter());
        let mut table = table.ok_or(inconsistent("slots", "two overlap, or one is too large"))?;
        if present.len() != table.chunks.len().div_ceil(8) {
            return Err(inconsistent("chunks that are not zero", "there are others"));
        }
        let mut checksums = checksums.chunks(4);
        for (index, chunk) in table.chunks.iter_mut().enumerate() {
            if present.get(index / 8).is_some_and(|byte| byte >> (index % 8) & 1 != 0) {
                let crc = checksums.next().and_then(|crc| crc.try_into().ok());
                let crc = crc.ok_or(inconsistent("checksums", "some are missing"))?;
                *chunk = Some(u32::from_le_bytes(crc));
            }
        }
        let beyond = present.last().is_some_and(|byte| {
            let used = table.chunks.len() % 8;
            used != 0 && byte >> used != 0
        });
        if beyond || checksums.next().is_some() {
            return Err(inconsistent("checksums", "there are more than chunks"));
        }
        table.pages = pages.map(|pages| table.load_pages(pages)).transpose()?;
        Ok(table)
    }

    /// Each chunk, and its checksum if it is not zero.
    pub(super) fn chunks(&self) -> impl Iterator<Item = (Chunk, Option<u32>)> {
        let chunks = self.slots.iter().flat_map(|slot| slot.chunks());
        chunks.zip(self.chunks.iter().copied())
    }

    /// Where the file has what of memory, in pieces that are in one chunk.
    pub(super) fn pieces_of(&self, range: &Range<u64>) -> impl Iterator<Item = Piece> {
        let (start, end) = (range.start, range.end);
        let mut before = 0;
        let slots = self.slots.iter().map(move |slot| {
            let first: usize = before;
            before += slot.size.div_ceil(CHUNK) as usize;
            (*slot, first)
        });
        slots.flat_map(move |(slot, first)| {
            let (from, to) = (start.max(slot.addr), end.min(slot.addr + slot.size));
            let to = to.saturating_sub(slot.addr);
            let from = from.saturating_sub(slot.addr).min(to);
            let last = if from < to { to.div_ceil(CHUNK) } else { 0 };
            (from / CHUNK..last).map(move |chunk| {
                let (from, to) = (from.max(chunk * CHUNK), to.min((chunk + 1) * CHUNK));
                let present = self.chunks.get(first + chunk as usize).is_some_and(Option::is_some);
                let (addr, offset, len) = (slot.addr + from, slot.offset + from, to - from);
                Piece { chunk: first + chunk as usize, at: from - chunk * CHUNK, addr, len, offset, present }
            })
        })
    }

    /// Writes what is not zero of `ram` to the empty part of `file` from `start` on; of a diff, what it has.
    pub(super) fn write(&mut self, ram: &Ram, file: &File, start: u64) -> Result<(), SnapshotError> {
        let dma = ram.dma();
        if self.is_diff() {
            return self.write_pages(ram, file, start);
        }
        let slots: Vec<RamSlot> = ram.slots().collect();
        self.write_from(file, start, |_, chunk, bytes| {
            let slot = slots.iter().rfind(|slot| slot.guest_addr <= chunk.addr);
            let shared = slot.and_then(|slot| Some((slot.file()?, chunk.addr - slot.guest_addr)));
            // Through its mapping, what nobody has touched would take memory for good. Devices may not be readable.
            let read = shared.map(|(file, at)| file.file().read_exact_at(bytes, file.start() + at));
            if read.is_none_or(|read| read.is_err()) {
                dma.read(GuestAddress(chunk.addr), bytes)?;
            }
            Ok(true)
        })
    }

    /// Writes what `read` says of each chunk, if it says something. What it is not asked to fill is zero.
    pub(super) fn write_from(
        &mut self,
        file: &File,
        start: u64,
        mut read: impl FnMut(usize, Chunk, &mut [u8]) -> Result<bool, SnapshotError>,
    ) -> Result<(), SnapshotError> {
        let mut buffer = vec![0; CHUNK as usize];
        let all: Vec<Chunk> = self.slots.iter().flat_map(|slot| slot.chunks()).collect();
        for (index, chunk) in all.into_iter().enumerate() {
            let bytes = buffer.get_mut(..chunk.len).unwrap_or_default();
            if read(index, chunk, bytes)? {
                self.write_chunk(index, bytes, file, start + chunk.offset)?;
            }
        }
        Ok(())
    }

    /// Writes what is not zero of a chunk to the empty part of `file` at `at`.
    pub(super) fn write_chunk(
        &mut self,
        index: usize,
        bytes: &[u8],
        file: &File,
        at: u64,
    ) -> Result<(), SnapshotError> {
        if write_nonzero(file, at, bytes)? {
            self.note(index, std::iter::once(bytes));
        }
        Ok(())
    }

    /// Compares what is in the file with its checksums. What is a hole has to be zero.
    pub(super) fn verify(&self, source: &mut dyn SnapshotSource, start: u64) -> Result<(), SnapshotError> {
        let mut buffer = vec![0; CHUNK as usize];
        if self.is_diff() {
            return self
                .pages()
                .try_for_each(|(index, _)| self.read_pages(source, start, index, &mut buffer).map(drop));
        }
        for (index, (chunk, checksum)) in self.chunks().enumerate() {
            let bytes = read(source, start, chunk, &mut buffer)?;
            match checksum {
                Some(_) => self.check(index, std::iter::once(bytes))?,
                None if bytes.iter().all(|byte| *byte == 0) => {}
                None => return Err(SnapshotError::MemoryChecksum { addr: chunk.addr }),
            }
        }
        Ok(())
    }

    /// Chunk `index`, and its checksum if the file has something of it.
    pub(super) fn chunk(&self, index: usize) -> Option<(Chunk, Option<u32>)> {
        let mut left = index;
        for slot in &self.slots {
            let count = slot.size.div_ceil(CHUNK) as usize;
            if left < count {
                let at = left as u64 * CHUNK;
                let len = CHUNK.min(slot.size - at) as usize;
                let chunk = Chunk { addr: slot.addr + at, offset: slot.offset + at, len };
                return Some((chunk, self.chunks.get(index).copied().flatten()));
            }
            left -= count;
        }
        None
    }

    /// The configuration of such memory: `config` is what the caller wants of it, which must be as
    /// large: with what was added or without.
    pub(super) fn config(&self, config: Option<RamConfig>) -> Result<RamConfig, SnapshotError> {
        let first = self.slots.first().map_or(0, |slot| slot.size);
        let (size, gap) = match self.second() {
            Some(second) => (first + second.size, first..second.addr),
            None => (first, first..first),
        };
        let all = self.size();
        if let Some(asked) = config.as_ref().map(|c| c.size).filter(|asked| ![size, all].contains(asked)) {
            return Err(SnapshotError::OtherMemory { found: self.size(), asked });
        }
        // It would show where the snapshot has zeros, and once more in each slot that is added.
        if config.as_ref().is_some_and(|config| matches!(config.backing, Backing::File(_))) {
            return Err(SnapshotError::FileMemory);
        }
        let mut config = config.unwrap_or_else(|| RamConfig::new(size)).gap(gap);
        config.size = size;
        Ok(config)
    }

    /// The slot behind a gap after the first. One without a gap has been added.
    fn second(&self) -> Option<&Slot> {
        let end = self.slots.first()?.addr.checked_add(self.slots.first()?.size)?;
        self.slots.get(1).filter(|second| second.addr > end)
    }

    /// Takes what the RAM lacks beside the slots of its [`config`](Self::config) from the host.
    pub(super) fn add_slots(&self, ram: &Ram, config: &RamConfig) -> Result<(), SnapshotError> {
        for slot in self.slots.iter().skip(1 + usize::from(self.second().is_some())) {
            ram.add_slot(slot.addr, slot.size, &config.backing)?;
        }
        Ok(())
    }

    /// Fails if `ram` has other slots.
    pub(super) fn expect_slots(&self, ram: &Ram) -> Result<(), SnapshotError> {
        let same = ram.slots().map(|slot| (slot.guest_addr, slot.size));
        if same.eq(self.slots.iter().map(|slot| (slot.addr, slot.size))) {
            return Ok(());
        }
        Err(SnapshotError::OtherMemory { found: self.size(), asked: ram.size() })
    }

    /// Fills `ram`, which is zero and has the same slots, with what is in the file: mapped copy on write where that can
    /// be, otherwise copied. With a key it is copied: what is mapped could change after it was checked.
    pub(super) fn fill(&self, ram: &Ram, file: &File, start: u64) -> Result<(), SnapshotError> {
        self.expect_slots(ram)?;
        if self.leaves.is_some() {
            return self.copy(ram, &mut { file }, start);
        }
        match map_file(&ram.map(), file, &self.pieces(start)) {
            Err(MapFileError::Backing { .. }) => self.copy(ram, &mut { file }, start),
            mapped => Ok(mapped?),
        }
    }

    /// What of the file is to be mapped where: all that is not zero, in so few pieces that it does not take long.
    pub(super) fn pieces(&self, start: u64) -> Vec<FilePiece> {
        let mut grain = 1;
        loop {
            let mut pieces: Vec<FilePiece> = Vec::new();
            let mut first = 0;
            for slot in &self.slots {
                let count = slot.size.div_ceil(CHUNK) as usize;
                let present = self.chunks.get(first..first + count).unwrap_or_default();
                first += count;
                let mut open = false;
                for (index, group) in present.chunks(grain).enumerate() {
                    let at = (index * grain) as u64 * CHUNK;
                    let len = (grain as u64 * CHUNK).min(slot.size - at);
                    let is_present = group.iter().any(Option::is_some);
                    match pieces.last_mut().filter(|_| open && is_present) {
                        Some(last) => last.len += len,
                        None if is_present => pieces.push(FilePiece {
                            addr: GuestAddress(slot.addr + at),
                            offset: start + slot.offset + at,
                            len,
                        }),
                        None => {}
                    }
                    open = is_present;
                }
            }
            if pieces.len() <= MAX_PIECES.max(self.slots.len()) {
                return pieces;
            }
            grain *= 2;
        }
    }

    /// All chunks, at their offsets in a file whose memory begins at `start`.
    pub(super) fn placed(&self, start: u64) -> impl Iterator<Item = PlacedChunk> {
        self.chunks().map(move |(Chunk { addr, offset, len }, checksum)| PlacedChunk {
            addr,
            offset: start + offset,
            len,
            checksum,
        })
    }

    /// Copies all that is not zero into `ram`, which is zero, page by page.
    pub(super) fn copy(
        &self,
        ram: &Ram,
        source: &mut dyn SnapshotSource,
        start: u64,
    ) -> Result<(), SnapshotError> {
        let dma = ram.dma();
        let mut buffer = vec![0; CHUNK as usize];
        for (index, (chunk, _)) in self.chunks().enumerate().filter(|(_, (_, checksum))| checksum.is_some()) {
            let bytes = read(source, start, chunk, &mut buffer)?;
            self.check(index, std::iter::once(bytes))?;
            // What is zero takes nothing from the host.
            for run in nonzero(bytes) {
                let addr = GuestAddress(chunk.addr + run.start as u64);
                dma.write(addr, bytes.get(run).unwrap_or_default())?;
            }
        }
        Ok(())
    }
}

fn read<'a>(
    source: &mut dyn SnapshotSource,
    start: u64,
    chunk: Chunk,
    buffer: &'a mut [u8],
) -> Result<&'a [u8], SnapshotError> {
    let bytes = buffer.get_mut(..chunk.len).unwrap_or_default();
    source.fetch(start + chunk.offset, bytes).map_err(failed)?;
    Ok(bytes)
}

/// Writes the runs of pages that are not zero. Returns true if there are some.
pub(super) fn write_nonzero(file: &File, start: u64, bytes: &[u8]) -> Result<bool, SnapshotError> {
    let mut some = false;
    for run in nonzero(bytes) {
        some = true;
        let at = start + run.start as u64;
        file.write_all_at(bytes.get(run).unwrap_or_default(), at).map_err(failed)?;
    }
    Ok(some)
}

/// The runs of pages that are not zero, ascending.
fn nonzero(bytes: &[u8]) -> impl Iterator<Item = Range<usize>> {
    let zeros = [0; PAGE];
    let mut pages = bytes.chunks(PAGE).map(move |page| Some(page) != zeros.get(..page.len())).enumerate();
    std::iter::from_fn(move || {
        let (first, _) = pages.find(|(_, some)| *some)?;
        let behind = pages.find(|(_, some)| !some).map(|(page, _)| page * PAGE);
        Some(first * PAGE..behind.unwrap_or(bytes.len()))
    })
}

fn failed(source: io::Error) -> SnapshotError {
    SnapshotError::Io { part: "memory", source }
}

#[cfg(test)]
mod tests;
