//! Blocking I/O by offset: what a format implements to get the synchronous engines.

use std::io;

use ossature_memory::{Dma, DmaIoError, Segments};

/// Bytes by offset, moved straight between the disk and guest memory by calls that block.
///
/// Whoever calls has checked that all of it lies within [`Disk::capacity`](crate::Disk::capacity). A transfer may be
/// short: the caller goes on where it ended. An error means that nothing was transferred by that call; a call that
/// a signal interrupted is made again by the disk itself. Several threads may call at once.
pub trait DiskIo: Send + Sync + 'static {
    /// Fills the segments from `offset` on. Returns the bytes read; 0 is the end of the disk.
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError>;
    /// Writes the segments to `offset` on. Returns the bytes written.
    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError>;
    /// Returns once all that was written before survives a power cut.
    fn flush(&self) -> io::Result<()>;
    /// The contents of `len` bytes from `offset` do not matter any more.
    fn discard(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Makes `len` bytes from `offset` read as zeros; with `unmap` their space may be given back to the host.
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()>;
}
