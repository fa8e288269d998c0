//! A disk without contents.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_bus::{DeviceError, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};

use crate::{Disk, DiskError, DiskIo, EngineSetup, SyncEngine};

/// A disk without contents: reads leave guest memory as it is, writes go nowhere. It shows what a request
/// costs without its I/O.
#[derive(Debug)]
pub struct NullDisk {
    capacity: AtomicU64,
}

impl NullDisk {
    /// A disk of `sectors` sectors of 512 bytes.
    pub fn new(sectors: u32) -> Self {
        Self { capacity: AtomicU64::new(u64::from(sectors) << 9) }
    }
}

impl DiskIo for NullDisk {
    #[inline]
    fn read(&self, _mem: &Dma, to: Segments<'_>, _offset: u64) -> Result<usize, DmaIoError> {
        Ok(to.len() as usize)
    }

    #[inline]
    fn write(&self, _mem: &Dma, from: Segments<'_>, _offset: u64) -> Result<usize, DmaIoError> {
        Ok(from.len() as usize)
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _offset: u64, _len: u64, _unmap: bool) -> io::Result<()> {
        Ok(())
    }
}

impl Disk for NullDisk {
    type Engine = SyncEngine<Self>;

    fn capacity(&self) -> u64 {
        self.capacity.load(Ordering::Relaxed)
    }

    fn read_only(&self) -> bool {
        false
    }

    fn logical_block(&self) -> u32 {
        512
    }

    fn physical_block(&self) -> u32 {
        512
    }

    fn engine(self: &Arc<Self>, _: &EngineSetup) -> Result<Self::Engine, DeviceError> {
        Ok(SyncEngine::new(Arc::clone(self)))
    }

    fn resize(&self, capacity: u64) -> Result<(), DiskError> {
        self.capacity.store(capacity, Ordering::Relaxed);
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
