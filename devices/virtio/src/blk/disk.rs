//! The disk under a block device.

use std::io;

use ossature_bus::{DeviceError, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};

/// A disk as [`Blk`](crate::Blk) uses it: bytes by offset, moved straight between the disk and guest memory.
/// It knows nothing of virtio.
///
/// The device has checked that every transfer lies within [`capacity`](Self::capacity). A transfer may be
/// short: the device goes on where it ended. An error means that nothing was transferred by that call; a call that
/// a signal interrupted is made again by the disk itself.
pub trait DiskIo: Send + Sync + 'static {
    /// Size in bytes, a multiple of 512; constant.
    fn capacity(&self) -> u64;
    /// Returns true if writes are refused; constant.
    fn read_only(&self) -> bool;
    /// The smallest size in bytes that the disk writes without having to read first: a power of two, at least
    /// 512; constant.
    fn physical_block(&self) -> u32;
    /// Fills the segments from `offset` on. Returns the bytes read; 0 is the end of the disk.
    fn read(&self, mem: &Dma, to: Segments<'_>, offset: u64) -> Result<usize, DmaIoError>;
    /// Writes the segments to `offset` on. Returns the bytes written.
    fn write(&self, mem: &Dma, from: Segments<'_>, offset: u64) -> Result<usize, DmaIoError>;
    /// Returns once all that was written before survives a power cut.
    fn flush(&self) -> io::Result<()>;
    /// Locks the disk for this device, against others that lock it: called before the device works with it, at first
    /// and after each [`unlock`](Self::unlock).
    fn lock(&self) -> Result<(), DeviceError>;
    /// Gives the disk up: another device, perhaps of another process, may work with it.
    fn unlock(&self) -> Result<(), DeviceError>;
    /// The system calls that the methods above make.
    fn syscalls(&self) -> &'static [Syscall];
}

/// A disk without contents: reads leave guest memory as it is, writes go nowhere. It shows what a request
/// costs without its I/O.
#[derive(Clone, Copy, Debug)]
pub struct NullDisk {
    capacity: u64,
}

impl NullDisk {
    /// A disk of `sectors` sectors of 512 bytes.
    pub fn new(sectors: u32) -> Self {
        Self { capacity: u64::from(sectors) << 9 }
    }
}

impl DiskIo for NullDisk {
    fn capacity(&self) -> u64 {
        self.capacity
    }

    fn read_only(&self) -> bool {
        false
    }

    fn physical_block(&self) -> u32 {
        512
    }

    fn read(&self, _mem: &Dma, to: Segments<'_>, _offset: u64) -> Result<usize, DmaIoError> {
        Ok(to.len() as usize)
    }

    fn write(&self, _mem: &Dma, from: Segments<'_>, _offset: u64) -> Result<usize, DmaIoError> {
        Ok(from.len() as usize)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn unlock(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}
