//! A snapshot in a compressed file, any part of which can be read by itself.
//!
//! A header of 32 bytes: `OSSAPACK`, the version of the format, 1, in 2 bytes, 6 bytes of 0, the size of the snapshot in
//! 8, the checksum of the index in 4, and that of the 28 bytes before it. Then the index, 4 bytes for each block of
//! 64 KiB: how many bytes it takes. 0 is a block of zeros, 65536 one that is as it is, and anything between one in LZ4's
//! block format. Then the blocks, one behind the other. Numbers are little-endian, checksums the CRC-32 of IEEE 802.3.
//! The blocks have none: the snapshot in it has.

use std::fs::File;
use std::io::{self, BufWriter, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::error::SnapshotError;
use super::file::NewFile;
use super::source::SnapshotSource;

const MAGIC: [u8; 8] = *b"OSSAPACK";
const VERSION: u16 = 1;
const HEADER: usize = 32;
/// More than a snapshot can have: its memory, and as much again for what is beside that.
const MAX_SIZE: u64 = 2 * super::memory::MAX_CHUNKS as u64 * super::memory::CHUNK;
const BLOCK: usize = 64 << 10;

/// A snapshot in a compressed file: see [`write`](Self::write).
#[derive(Debug)]
pub struct PackedSnapshot {
    file: File,
    size: u64,
    /// Where each block begins, and the last one ends.
    places: Vec<u64>,
    packed: Vec<u8>,
    block: Vec<u8>,
}

impl PackedSnapshot {
    /// Compresses a snapshot to a file at `path`, as [`snapshot`](super::super::MachineHandle::snapshot) makes one: there
    /// in full or not at all, and only of its owner. What is there and is no such file is refused.
    ///
    /// ```
    /// use std::fs::File;
    /// use ossature_core::machine::{Machine, PackedSnapshot, Snapshot};
    /// # use ossature_core::scripted::{Script, Scripted};
    ///
    /// # let folder = tempfile::tempdir()?;
    /// # std::env::set_current_dir(&folder)?;
    /// # Machine::builder("first").build(&Scripted::new([Script::new()]))?.snapshot("guest.snap")?;
    /// PackedSnapshot::write(File::open("guest.snap")?, "guest.pack")?;
    /// let snapshot = Snapshot::from_source(PackedSnapshot::open("guest.pack")?)?;
    /// # snapshot.verify_memory()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn write(mut source: impl SnapshotSource, path: impl AsRef<Path>) -> Result<(), SnapshotError> {
        let new = NewFile::with_magic(path.as_ref(), MAGIC)?;
        pack(&mut source, new.file())
            .map_err(|source| SnapshotError::Io { part: "compressed copy", source })?;
        new.commit()
    }

    /// Opens such a file.
    pub fn open(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let named = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", path.display()));
        File::open(path).and_then(Self::from_file).map_err(named)
    }

    /// Such a file that is open.
    pub fn from_file(file: File) -> io::Result<Self> {
        let has = file.metadata()?.len();
        let mut header = [0; HEADER];
        file.read_exact_at(&mut header, 0)?;
        let (checked, checksum) = header.split_at(HEADER - 4);
        if !checked.starts_with(&MAGIC) {
            return Err(invalid("it is no compressed snapshot"));
        }
        if checked.get(8..10) != Some(&VERSION.to_le_bytes()) {
            return Err(invalid("it has another version of the format of compressed snapshots"));
        }
        if checksum != crc32fast::hash(checked).to_le_bytes() {
            return Err(invalid("its header has a wrong checksum"));
        }
        let number = |at: usize| {
            let bytes = checked.get(at..at + 8).and_then(|bytes| bytes.try_into().ok());
            u64::from_le_bytes(bytes.unwrap_or_default())
        };
        let (size, blocks) = (number(16), number(16).div_ceil(BLOCK as u64));
        if number(16) > MAX_SIZE {
            return Err(invalid("it is larger than any snapshot"));
        }
        // Also what bounds the allocation.
        let start = blocks.saturating_mul(4).saturating_add(HEADER as u64);
        if start > has {
            return Err(invalid("it is truncated"));
        }
        let mut index = vec![0; blocks as usize * 4];
        file.read_exact_at(&mut index, HEADER as u64)?;
        if checked.get(24..28) != Some(&crc32fast::hash(&index).to_le_bytes()) {
            return Err(invalid("its index has a wrong checksum"));
        }
        let mut places = Vec::with_capacity(blocks as usize + 1);
        places.push(start);
        let mut end = start;
        for len in index.chunks_exact(4) {
            let len = u32::from_le_bytes(len.try_into().unwrap_or_default()) as u64;
            if len > BLOCK as u64 {
                return Err(invalid("its index has a block that is too long"));
            }
            end += len;
            places.push(end);
        }
        if end > has {
            return Err(invalid("it is truncated"));
        }
        Ok(Self { file, size, places, packed: vec![0; BLOCK], block: vec![0; BLOCK] })
    }

    /// Unpacks block `index` and returns its bytes.
    fn unpack(&mut self, index: usize) -> io::Result<&[u8]> {
        let place = |index: usize| self.places.get(index).copied().ok_or(io::ErrorKind::UnexpectedEof);
        let (start, end) = (place(index)?, place(index.saturating_add(1))?);
        // As long as the snapshot still is.
        let whole = (self.size - index as u64 * BLOCK as u64).min(BLOCK as u64) as usize;
        let block = self.block.get_mut(..whole).unwrap_or_default();
        let packed = self.packed.get_mut(..(end - start) as usize).unwrap_or_default();
        if packed.is_empty() {
            block.fill(0);
        } else if packed.len() == BLOCK {
            self.file.read_exact_at(packed, start)?;
            block.copy_from_slice(packed.get(..whole).unwrap_or_default());
        } else {
            self.file.read_exact_at(packed, start)?;
            let len = lz4_flex::block::decompress_into(packed, block).map_err(io::Error::other)?;
            if len != whole {
                return Err(invalid("a block of it is too short"));
            }
        }
        Ok(block)
    }
}

impl SnapshotSource for PackedSnapshot {
    fn size(&mut self) -> io::Result<u64> {
        Ok(self.size)
    }

    fn fetch(&mut self, offset: u64, mut bytes: &mut [u8]) -> io::Result<()> {
        let mut at = offset;
        while !bytes.is_empty() {
            let inside = (at % BLOCK as u64) as usize;
            let block = self.unpack((at / BLOCK as u64) as usize)?;
            let from =
                block.get(inside..).filter(|from| !from.is_empty()).ok_or(io::ErrorKind::UnexpectedEof)?;
            let (to, rest) = bytes.split_at_mut(from.len().min(bytes.len()));
            to.copy_from_slice(from.get(..to.len()).unwrap_or_default());
            at += to.len() as u64;
            bytes = rest;
        }
        Ok(())
    }
}

fn pack(source: &mut impl SnapshotSource, file: &File) -> io::Result<()> {
    let size = source.size()?;
    let blocks = size.div_ceil(BLOCK as u64);
    let mut out = BufWriter::with_capacity(1 << 20, file);
    out.seek(SeekFrom::Start(HEADER as u64 + blocks * 4))?;
    let mut index = Vec::new();
    let (mut block, mut packed) = (vec![0; BLOCK], vec![0; lz4_flex::block::get_maximum_output_size(BLOCK)]);
    for number in 0..blocks {
        let at = number * BLOCK as u64;
        // The last one is filled up with zeros if it is stored as it is.
        block.fill(0);
        let whole = block.get_mut(..(size - at).min(BLOCK as u64) as usize).unwrap_or_default();
        source.fetch(at, whole)?;
        let len = if whole.iter().all(|byte| *byte == 0) {
            0
        } else {
            match lz4_flex::block::compress_into(whole, &mut packed).map_err(io::Error::other)? {
                len if len < BLOCK => {
                    out.write_all(packed.get(..len).unwrap_or_default())?;
                    len
                }
                _ => {
                    out.write_all(&block)?;
                    BLOCK
                }
            }
        };
        index.extend((len as u32).to_le_bytes());
    }
    out.flush()?;
    file.write_all_at(&index, HEADER as u64)?;
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend([0; 6]);
    header.extend(size.to_le_bytes());
    header.extend(crc32fast::hash(&index).to_le_bytes());
    header.extend(crc32fast::hash(&header).to_le_bytes());
    file.write_all_at(&header, 0)
}

fn invalid(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests;
