//! An image: what a guest's disk is, apart from how requests are carried out.

use std::sync::Arc;

use ossature_bus::{DeviceError, Identity, Syscall};

use crate::{DiskError, Engine, EngineSetup};

/// A disk. It hands out an [`Engine`] for each queue of the device in front of it; the engines and the disk may be used
/// from several threads at once.
pub trait Disk: Send + Sync + 'static {
    /// What carries its requests out.
    type Engine: Engine + 'static;

    /// Size in bytes, a multiple of 512. Changes only with [`resize`](Self::resize).
    fn capacity(&self) -> u64;
    /// Returns true if writes are refused; constant.
    fn read_only(&self) -> bool;
    /// The unit in bytes of the requests that it serves best, and what the guest is told as the size of a sector: a power
    /// of two, at least 512; constant. It serves requests in units of 512 bytes all the same.
    fn logical_block(&self) -> u32;
    /// The smallest size in bytes that the disk writes without having to read first: a power of two, at least
    /// [`logical_block`](Self::logical_block); constant.
    fn physical_block(&self) -> u32;
    /// Makes an engine for one queue. It may be made on any thread, and is used on one thread at a time.
    fn engine(self: &Arc<Self>, setup: &EngineSetup) -> Result<Self::Engine, DeviceError>;
    /// Makes the disk `capacity` bytes long, a multiple of 512. Engines see it at once. What lies beyond the new end of a
    /// disk that shrinks is lost; what a disk gains reads as zeros.
    fn resize(&self, capacity: u64) -> Result<(), DiskError>;
    /// Locks the disk for this device, against others that lock it: called before the device works with it, at first
    /// and after each [`unlock`](Self::unlock).
    fn lock(&self) -> Result<(), DeviceError>;
    /// Gives the disk up: another device, perhaps of another process, may work with it. Its engines are idle.
    fn unlock(&self) -> Result<(), DeviceError>;
    /// The system calls that the disk and its engines make once they are used.
    fn syscalls(&self) -> &'static [Syscall];
    /// What of it no other guest may have at once, such as a file that it writes. Nothing by default.
    fn identities(&self) -> Vec<Identity> {
        Vec::new()
    }
}
