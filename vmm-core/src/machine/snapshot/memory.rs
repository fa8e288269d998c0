//! Guest memory in a snapshot: what of it is there, how it gets there, and how it gets out again. Its section is
//! `memory`.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, FilePiece, MapFileError, Ram, RamConfig, RamSlot, map_file};

use super::error::SnapshotError;
use super::header::ALIGN;
use super::source::SnapshotSource;

/// The section's id.
pub(super) const ID: &str = "memory";

const KIND: &str = "org.ossature.memory";
const VERSION: u16 = 1;
const SLOTS: Field = Field::new(1, "slots");
const PRESENT: Field = Field::new(2, "chunks that are not zero");
const CHECKSUMS: Field = Field::new(3, "checksums");
const ADDRESS: Field = Field::new(1, "address of a slot");
const SIZE: Field = Field::new(2, "size of a slot");

/// Memory is checked, and left out if it is zero, in pieces of this many bytes.
pub(super) const CHUNK: u64 = 2 << 20;
/// What is zero within a chunk is a hole in pieces of this many bytes.
const PAGE: usize = 4096;
/// More than machines have.
const MAX_SLOTS: usize = 512;
/// 2 TiB of memory.
pub(super) const MAX_CHUNKS: usize = 1 << 20;
/// Into how many mappings memory is cut, so that what is zero is no page of the file. Each takes the kernel some
/// microseconds.
const MAX_PIECES: usize = 256;

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
struct Chunk {
    addr: u64,
    offset: u64,
    len: usize,
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
    /// For each chunk: its checksum if it is not zero.
    chunks: Vec<Option<u32>>,
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
        fits.then(|| Self { slots: placed, chunks: vec![None; chunks as usize] })
    }

    /// The longest that it can become.
    pub(super) fn full(&self) -> Self {
        Self { slots: self.slots.clone(), chunks: vec![Some(0); self.chunks.len()] }
    }

    /// Bytes of the file that memory takes.
    pub(super) fn len(&self) -> u64 {
        self.slots.last().map_or(0, |slot| slot.offset + slot.size)
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
        let mut fields = Encoder::new(KIND, VERSION);
        fields.list(SLOTS, &self.slots, |fields, slot| {
            fields.u64(ADDRESS, slot.addr).u64(SIZE, slot.size);
        });
        fields.bytes(PRESENT, &present).bytes(CHECKSUMS, &checksums);
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let inconsistent = |field, reason| StateError::Inconsistent { field, reason };
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let slots = fields.list(SLOTS, MAX_SLOTS, |fields| Ok((fields.u64(ADDRESS)?, fields.u64(SIZE)?)))?;
        let present = fields.bytes(PRESENT, MAX_CHUNKS / 8)?;
        let checksums = fields.bytes(CHECKSUMS, MAX_CHUNKS * 4)?;
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
        Ok(table)
    }

    /// Each chunk, and its checksum if it is not zero.
    fn chunks(&self) -> impl Iterator<Item = (Chunk, Option<u32>)> {
        let chunks = self.slots.iter().flat_map(|slot| slot.chunks());
        chunks.zip(self.chunks.iter().copied())
    }

    /// Writes what is not zero of `ram` to the empty part of `file` from `start` on.
    pub(super) fn write(&mut self, ram: &Ram, file: &File, start: u64) -> Result<(), SnapshotError> {
        let dma = ram.dma();
        let mut buffer = vec![0; CHUNK as usize];
        let all: Vec<Chunk> = self.slots.iter().flat_map(|slot| slot.chunks()).collect();
        for (index, chunk) in all.into_iter().enumerate() {
            let bytes = buffer.get_mut(..chunk.len).unwrap_or_default();
            dma.read(GuestAddress(chunk.addr), bytes)?;
            self.write_chunk(index, bytes, file, start + chunk.offset)?;
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
        let zeros = [0; PAGE];
        let mut is_zero = true;
        // Runs of pages that are not zero.
        let mut run = 0..0;
        for (index, page) in bytes.chunks(PAGE).enumerate() {
            if Some(page) != zeros.get(..page.len()) {
                let begin = if run.is_empty() { index * PAGE } else { run.start };
                run = begin..index * PAGE + page.len();
                is_zero = false;
            } else if !run.is_empty() {
                write_run(file, at, bytes, std::mem::take(&mut run))?;
            }
        }
        if !run.is_empty() {
            write_run(file, at, bytes, run)?;
        }
        if let Some(chunk) = self.chunks.get_mut(index) {
            *chunk = (!is_zero).then(|| crc32fast::hash(bytes));
        }
        Ok(())
    }

    /// Compares what is in the file with its checksums. What is a hole has to be zero.
    pub(super) fn verify(&self, source: &mut dyn SnapshotSource, start: u64) -> Result<(), SnapshotError> {
        let mut buffer = vec![0; CHUNK as usize];
        for (chunk, checksum) in self.chunks() {
            let bytes = read(source, start, chunk, &mut buffer)?;
            let intact = match checksum {
                Some(checksum) => crc32fast::hash(bytes) == checksum,
                None => bytes.iter().all(|byte| *byte == 0),
            };
            if !intact {
                return Err(SnapshotError::MemoryChecksum { addr: chunk.addr });
            }
        }
        Ok(())
    }

    /// The configuration of such memory: `config` is what the caller wants of it, which must be as large.
    pub(super) fn config(&self, config: Option<RamConfig>) -> Result<RamConfig, SnapshotError> {
        let first = self.slots.first().map_or(0, |slot| slot.size);
        let (size, gap) = match self.slots.get(1) {
            Some(second) => (first + second.size, first..second.addr),
            None => (first, first..first),
        };
        if let Some(asked) = config.as_ref().map(|config| config.size).filter(|asked| *asked != size) {
            return Err(SnapshotError::OtherMemory { found: self.size(), asked });
        }
        // It would show where the snapshot has zeros, and once more in each slot that is added.
        if config.as_ref().is_some_and(|config| matches!(config.backing, Backing::File(_))) {
            return Err(SnapshotError::FileMemory);
        }
        Ok(config.unwrap_or_else(|| RamConfig::new(size)).gap(gap))
    }

    /// Takes what the RAM lacks beside its first two slots from the host.
    pub(super) fn add_slots(&self, ram: &Ram, config: &RamConfig) -> Result<(), SnapshotError> {
        for slot in self.slots.iter().skip(2) {
            ram.add_slot(slot.addr, slot.size, &config.backing)?;
        }
        Ok(())
    }

    /// Fills `ram`, which is zero and has the same slots, with what is in the file: mapped copy on write where that can
    /// be, otherwise copied.
    pub(super) fn fill(&self, ram: &Ram, file: &File, start: u64) -> Result<(), SnapshotError> {
        self.check_slots(ram)?;
        match map_file(&ram.map(), file, &self.pieces(start)) {
            Err(MapFileError::Backing { .. }) => self.copy(ram, &mut { file }, start),
            mapped => Ok(mapped?),
        }
    }

    /// Refuses RAM of other slots.
    pub(super) fn check_slots(&self, ram: &Ram) -> Result<(), SnapshotError> {
        let same = ram.slots().map(|slot| (slot.guest_addr, slot.size));
        let same = same.eq(self.slots.iter().map(|slot| (slot.addr, slot.size)));
        let other = || SnapshotError::OtherMemory { found: self.size(), asked: ram.size() };
        same.then_some(()).ok_or_else(other)
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

    /// Copies all that is not zero into `ram`, which is zero.
    pub(super) fn copy(
        &self,
        ram: &Ram,
        source: &mut dyn SnapshotSource,
        start: u64,
    ) -> Result<(), SnapshotError> {
        let dma = ram.dma();
        let mut buffer = vec![0; CHUNK as usize];
        for (chunk, checksum) in self.chunks() {
            let Some(checksum) = checksum else { continue };
            let bytes = read(source, start, chunk, &mut buffer)?;
            if crc32fast::hash(bytes) != checksum {
                return Err(SnapshotError::MemoryChecksum { addr: chunk.addr });
            }
            dma.write(GuestAddress(chunk.addr), bytes)?;
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

fn write_run(
    file: &File,
    start: u64,
    bytes: &[u8],
    run: std::ops::Range<usize>,
) -> Result<(), SnapshotError> {
    let at = start + run.start as u64;
    file.write_all_at(bytes.get(run).unwrap_or_default(), at).map_err(failed)
}

fn failed(source: io::Error) -> SnapshotError {
    SnapshotError::Io { part: "memory", source }
}

#[cfg(test)]
mod tests;
