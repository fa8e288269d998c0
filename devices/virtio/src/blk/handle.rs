//! What a VMM does with a disk whose device a machine has.

use std::fmt;
use std::sync::Arc;

use ossature_block::DiskError;

pub(super) trait Control: Send + Sync {
    fn resize(&self, bytes: u64) -> Result<(), DiskError>;
    fn capacity(&self) -> u64;
}

/// Changes a block device that a machine has, from any thread. Clones are of the same device.
#[derive(Clone)]
pub struct BlkHandle(pub(super) Arc<dyn Control>);

impl BlkHandle {
    /// Makes the disk `bytes` long, a multiple of 512, and tells the driver with a configuration-change interrupt. Of a
    /// disk that shrinks, what lies beyond its new end is lost.
    ///
    /// # Errors
    /// The disk cannot have that size; the driver is told nothing.
    pub fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        self.0.resize(bytes)
    }

    /// The disk's size in bytes, as the driver is told.
    pub fn capacity(&self) -> u64 {
        self.0.capacity()
    }
}

impl fmt::Debug for BlkHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlkHandle").field("capacity", &self.capacity()).finish()
    }
}
