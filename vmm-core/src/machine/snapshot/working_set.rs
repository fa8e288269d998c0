//! Which memory a guest touches after it has been restored, so that the next one finds it there.
//!
//! The file: `OSSAWSET`, the version of the format, 1, in 4 bytes, the number of chunks in 4, which snapshot it is of in 8,
//! then the index of each chunk of 2 MiB in 4 bytes, in the order in which they were touched, and the checksum of all of
//! it. Numbers are little-endian, the checksum is the CRC-32 of IEEE 802.3.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use super::error::SnapshotError;
use super::file::NewFile;
use super::memory::MAX_CHUNKS;

const MAGIC: [u8; 8] = *b"OSSAWSET";
const VERSION: u32 = 1;
const HEADER: usize = 24;

/// The parts of guest memory, 2 MiB each, that a guest touched after it was restored [on
/// demand](super::Snapshot::on_demand), in this order. A machine that is restored with it has them sooner: see
/// [`Snapshot::prefetch`](super::Snapshot::prefetch).
///
/// It belongs to one snapshot and is kept beside it: `guest.snap.ws` beside `guest.snap`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkingSet {
    /// Which snapshot it is of.
    pub(super) snapshot: u64,
    pub(super) chunks: Vec<u32>,
}

impl WorkingSet {
    /// Reads one from a file. What it says is checked when it is used.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SnapshotError> {
        let path = path.as_ref();
        let failed = |call| move |source| SnapshotError::File { path: path.to_owned(), call, source };
        let file = File::open(path).map_err(failed("open"))?;
        // No more than there can be.
        let most = (HEADER + MAX_CHUNKS * 4 + 4) as u64;
        let mut bytes = Vec::new();
        file.take(most + 1).read_to_end(&mut bytes).map_err(failed("read"))?;
        Self::from_bytes(&bytes).map_err(|error| error.opened(path))
    }

    /// Writes it to a file at `path`: there in full or not at all. What is there and is no working set is refused.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        let path = path.as_ref();
        let new = NewFile::with_magic(path, MAGIC)?;
        let failed = |source: io::Error| SnapshotError::File { path: path.to_owned(), call: "write", source };
        { new.file() }.write_all(&self.to_bytes()).map_err(failed)?;
        new.commit()
    }

    /// How many bytes of guest memory it names.
    pub fn bytes(&self) -> u64 {
        self.chunks.len() as u64 * super::memory::CHUNK
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((self.chunks.len() as u32).to_le_bytes());
        bytes.extend(self.snapshot.to_le_bytes());
        bytes.extend(self.chunks.iter().flat_map(|chunk| chunk.to_le_bytes()));
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Result<Self, SnapshotError> {
        let damaged = |reason| SnapshotError::WorkingSet { reason };
        let magic = bytes.get(..8).and_then(|magic| magic.strip_prefix(&MAGIC));
        let version = magic.and_then(|_| bytes.get(8..12));
        if magic.is_none() {
            return Err(damaged("it is no working set"));
        }
        if version != Some(&VERSION.to_le_bytes()) {
            return Err(damaged("it has another version of the format"));
        }
        let (checked, checksum) = bytes.split_last_chunk::<4>().ok_or(damaged("it is truncated"))?;
        if *checksum != crc32fast::hash(checked).to_le_bytes() {
            return Err(damaged("it has a wrong checksum"));
        }
        let number =
            |at: usize| checked.get(at..)?.first_chunk::<4>().map(|bytes| u32::from_le_bytes(*bytes));
        let snapshot = checked.get(16..24).and_then(|bytes| bytes.try_into().ok()).map(u64::from_le_bytes);
        let (count, snapshot) = number(12).zip(snapshot).ok_or(damaged("it is truncated"))?;
        let chunks: Vec<u32> = (HEADER..checked.len()).step_by(4).filter_map(number).collect();
        if chunks.len() != count as usize || chunks.len() > MAX_CHUNKS || checked.len() % 4 != 0 {
            return Err(damaged("it has not as many chunks as it says"));
        }
        Ok(Self { snapshot, chunks })
    }
}

#[cfg(test)]
mod tests;
