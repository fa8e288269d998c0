//! A file with a position of its own.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result, Seek, SeekFrom};
use std::os::unix::fs::FileExt;

use ossature_memory::vm_memory::bitmap::BitmapSlice;
use ossature_memory::vm_memory::{ReadVolatile, VolatileMemoryError, VolatileSlice};

/// Bytes that are read at once on their way to guest memory.
const CHUNK: usize = 1 << 16;

/// Reads a file without touching the position that all duplicates of its descriptor share.
pub(super) struct ReaderAt<'a> {
    file: &'a File,
    position: u64,
    chunk: Vec<u8>,
}

impl<'a> ReaderAt<'a> {
    /// At the file's start.
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, position: 0, chunk: Vec::new() }
    }
}

impl Read for ReaderAt<'_> {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize> {
        let read = self.file.read_at(buf, self.position)?;
        self.position = self.position.saturating_add(read as u64);
        Ok(read)
    }
}

impl Seek for ReaderAt<'_> {
    fn seek(&mut self, to: SeekFrom) -> Result<u64> {
        let (from, offset) = match to {
            SeekFrom::Start(position) => (position, 0),
            SeekFrom::Current(offset) => (self.position, offset),
            SeekFrom::End(offset) => (self.file.metadata()?.len(), offset),
        };
        let outside =
            || Error::new(ErrorKind::InvalidInput, "the position is before the start or beyond 2^64");
        self.position = from.checked_add_signed(offset).ok_or_else(outside)?;
        Ok(self.position)
    }
}

impl ReadVolatile for ReaderAt<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> std::result::Result<usize, VolatileMemoryError> {
        let most = CHUNK.min(buf.len());
        if self.chunk.len() < most {
            self.chunk.resize(most, 0);
        }
        let mut done = 0;
        // vm-memory takes less than what there is room for as the file's end.
        while done < buf.len() {
            let room = self.chunk.get_mut(..CHUNK.min(buf.len() - done)).unwrap_or_default();
            let read = match self.file.read_at(room, self.position) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // What was read by then counts, and the error comes again.
                Err(_) if done > 0 => break,
                Err(error) => return Err(VolatileMemoryError::IOError(error)),
            };
            buf.offset(done)?.copy_from(room.get(..read).unwrap_or_default());
            self.position = self.position.saturating_add(read as u64);
            done += read;
        }
        Ok(done)
    }
}
