//! The view of guest RAM that a device gets: bounds-checked copies, never a reference.

use std::sync::Arc;

use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemory, Permissions};

use crate::GuestMmap;

/// A run of guest-physical memory: one descriptor of a chain, one piece of a DMA transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A DMA access that did not hit guest RAM from its first to its last byte.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DmaError {
    /// Part of the range is not RAM.
    #[error("guest memory {addr:#x}+{len:#x} is not RAM")]
    NotRam {
        /// First byte of the range.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
}

/// A device's view of guest RAM. Cheap to clone. Reaches RAM only: an address that belongs to a
/// device's registers is an error, so DMA can never re-enter a device.
#[derive(Clone, Debug)]
pub struct Dma {
    mem: Arc<GuestMmap>,
}

impl Dma {
    /// A view of all of `mem`.
    pub fn new(mem: Arc<GuestMmap>) -> Self {
        Self { mem }
    }

    /// The map itself, for code that works with vm-memory's traits.
    pub fn memory(&self) -> &GuestMmap {
        &self.mem
    }

    /// Whether `len` bytes from `addr` are RAM.
    pub fn check(&self, addr: GuestAddress, len: u64) -> Result<(), DmaError> {
        let fits = usize::try_from(len)
            .is_ok_and(|len| GuestMemory::check_range(&*self.mem, addr, len, Permissions::ReadWrite));
        if fits { Ok(()) } else { Err(DmaError::NotRam { addr: addr.0, len }) }
    }

    /// Copies guest memory into `buf`.
    pub fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), DmaError> {
        let len = buf.len() as u64;
        self.mem.read_slice(buf, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }

    /// Copies `buf` into guest memory.
    pub fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), DmaError> {
        self.mem.write_slice(buf, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len: buf.len() as u64 })
    }

    /// Reads one plain value.
    pub fn read_obj<T: ByteValued>(&self, addr: GuestAddress) -> Result<T, DmaError> {
        let len = size_of::<T>() as u64;
        self.mem.read_obj(addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }

    /// Writes one plain value.
    pub fn write_obj<T: ByteValued>(&self, addr: GuestAddress, value: T) -> Result<(), DmaError> {
        let len = size_of::<T>() as u64;
        self.mem.write_obj(value, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }
}
