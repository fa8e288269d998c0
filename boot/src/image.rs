//! Where an image comes from: an open file or bytes in memory.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::sync::Arc;

use ossature_memory::{Dma, DmaIoError, GuestMmap, Segment};
use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryError};

/// What is read with one call: any length that a [`Segment`] has, in whole pages.
const PIECE: u64 = 1 << 30;
const PAGE_SIZE: usize = 4096;

/// An image (a kernel or an initial RAM disk) to be read at random offsets.
///
/// A file is read straight into guest memory, without a buffer between, at absolute offsets (pread): its position does
/// not matter, and any number of machines can load from one open file at the same time.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum ImageSource<'a> {
    /// An open regular file or block device.
    File(&'a File),
    /// The same, whose pages are mapped copy-on-write into guest memory where they meet pages of the guest, and
    /// copied where not. That takes guest memory which [`map_file`](ossature_memory::map_file) can map over, and
    /// a file that stays as it is for as long as the guest runs: that page says what happens otherwise.
    Mapped(&'a File),
    /// Bytes in memory.
    Bytes(&'a [u8]),
}

impl<'a> From<&'a File> for ImageSource<'a> {
    fn from(file: &'a File) -> Self {
        Self::File(file)
    }
}

impl<'a> From<&'a [u8]> for ImageSource<'a> {
    fn from(bytes: &'a [u8]) -> Self {
        Self::Bytes(bytes)
    }
}

impl ImageSource<'_> {
    /// Length in bytes. Fails on what has no length or no random access: folders, pipes, terminals.
    pub fn size(&self) -> io::Result<u64> {
        match self {
            Self::Bytes(bytes) => Ok(bytes.len() as u64),
            Self::File(file) | Self::Mapped(file) => {
                let meta = file.metadata()?;
                let kind = meta.file_type();
                if kind.is_file() {
                    Ok(meta.len())
                } else if kind.is_block_device() {
                    let mut file = *file;
                    file.seek(SeekFrom::End(0))
                } else {
                    let reason = if kind.is_dir() { "it is a folder" } else { "it is not a regular file" };
                    Err(io::Error::new(io::ErrorKind::InvalidInput, reason))
                }
            }
        }
    }

    /// Fills `buf` with the bytes from `offset` on.
    pub(crate) fn read_exact_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        match self {
            Self::File(file) | Self::Mapped(file) => file.read_exact_at(buf, offset),
            Self::Bytes(bytes) => {
                let found = slice(bytes, offset, buf.len() as u64).ok_or(io::ErrorKind::UnexpectedEof)?;
                buf.copy_from_slice(found);
                Ok(())
            }
        }
    }

    /// Copies `len` bytes from `offset` on to guest memory at `addr`, which reads as zero before; returns how many
    /// bytes were written. From memory, pages of zeros are left alone: a third of an unpacked kernel is such. To
    /// look for them in a file takes a second copy of the rest, and guests touch most of them later.
    pub(crate) fn copy_to_guest(
        &self,
        offset: u64,
        len: u64,
        mem: &GuestMmap,
        addr: GuestAddress,
    ) -> io::Result<u64> {
        match self {
            Self::File(file) | Self::Mapped(file) => {
                read_file(file, offset, len, mem, addr)?;
                Ok(len)
            }
            Self::Bytes(bytes) => {
                let found = slice(bytes, offset, len).ok_or(io::ErrorKind::UnexpectedEof)?;
                write_pages(found, mem, addr).map_err(io::Error::other)
            }
        }
    }

    /// A reader of the `len` bytes from `offset` on.
    pub(crate) fn reader(&self, offset: u64, len: u64) -> ImageReader<'_> {
        ImageReader { source: *self, at: offset, left: len }
    }
}

/// Reads all of `len` bytes from `offset` on straight into guest memory.
fn read_file(file: &File, mut offset: u64, len: u64, mem: &GuestMmap, addr: GuestAddress) -> io::Result<()> {
    let dma = Dma::new(Arc::new(mem.clone()));
    let end = offset.checked_add(len).ok_or(io::ErrorKind::InvalidInput)?;
    let mut addr = addr;
    while offset < end {
        let segment = Segment { addr, len: (end - offset).min(PIECE) as u32 };
        let read = match dma.preadv(file, &[segment], offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => read as u64,
            Err(DmaIoError::Io(error)) => return Err(error),
            Err(error) => return Err(io::Error::other(error)),
        };
        offset += read;
        addr = addr.checked_add(read).ok_or(io::ErrorKind::InvalidInput)?;
    }
    Ok(())
}

/// Writes the pages that hold anything but zeros; returns how many bytes those are.
fn write_pages(bytes: &[u8], mem: &GuestMmap, mut addr: GuestAddress) -> Result<u64, GuestMemoryError> {
    let mut written = 0;
    let mut rest = bytes;
    while !rest.is_empty() {
        let to_page_end = PAGE_SIZE - addr.0 as usize % PAGE_SIZE;
        let (page, after) = rest.split_at(rest.len().min(to_page_end));
        // Blocks, because the compiler compares each of them at once.
        if page.chunks(64).any(|block| block.iter().fold(0, |all, byte| all | byte) != 0) {
            mem.write_slice(page, addr)?;
            written += page.len() as u64;
        }
        addr = addr.checked_add(page.len() as u64).ok_or(GuestMemoryError::InvalidGuestAddress(addr))?;
        rest = after;
    }
    Ok(written)
}

fn slice(bytes: &[u8], offset: u64, len: u64) -> Option<&[u8]> {
    let start = usize::try_from(offset).ok()?;
    let end = start.checked_add(usize::try_from(len).ok()?)?;
    bytes.get(start..end)
}

/// Reads part of a [`ImageSource`] from its start to its end. Does not buffer.
pub(crate) struct ImageReader<'a> {
    source: ImageSource<'a>,
    at: u64,
    left: u64,
}

impl Read for ImageReader<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let want = (buf.len() as u64).min(self.left) as usize;
        let Some(buf) = buf.get_mut(..want) else { return Ok(0) };
        self.source.read_exact_at(self.at, buf)?;
        self.at += want as u64;
        self.left -= want as u64;
        Ok(want)
    }
}

#[cfg(test)]
mod tests;
