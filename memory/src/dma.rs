//! The view of guest RAM that a device gets: bounds-checked copies, never a reference.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{
    AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion,
    MemoryRegionAddress, VolatileSlice, bitmap::MS,
};

use crate::{GuestMmap, Segments, Window};

/// A DMA access that did not hit guest RAM from its first to its last byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// The range is RAM in more than one piece, where it has to be in one.
    #[error("guest memory {addr:#x}+{len:#x} is not in one piece")]
    Split {
        /// First byte of the range.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// The access ends outside its [`Window`].
    #[error("{len} bytes at offset {offset:#x} end outside the window of guest memory")]
    OutsideWindow {
        /// Bytes from the start of the window.
        offset: usize,
        /// Length in bytes.
        len: usize,
    },
    /// An atomic access at an address that is not a multiple of its width.
    #[error("atomic access to guest memory {addr:#x} is not aligned to {align} bytes")]
    Misaligned {
        /// The address.
        addr: u64,
        /// Bytes that it must be a multiple of.
        align: usize,
    },
}

/// A device's view of guest RAM. Cheap to clone. Reaches RAM only: an address that belongs to a
/// device's registers is an error, so DMA can never re-enter a device.
///
/// Everything is copied: the guest can change its memory at any time, so a device reads what it needs once,
/// checks the copy and goes on with the copy. Ranges of length 0 are RAM wherever they are. A range that is
/// not RAM from its first to its last byte is an error, and nothing of it is copied.
///
/// The methods look the address up each time. What is used again and again, such as a ring, is better looked
/// up once, with [`window`](Self::window). File and socket I/O without a copy is in [`readv`](Self::readv)
/// and its like.
#[derive(Clone, Debug)]
pub struct Dma {
    mem: Arc<GuestMmap>,
    /// First and last byte of each run of RAM, ascending; regions that touch are one run. Devices check every
    /// descriptor of every request: this is what makes that cheap.
    runs: Arc<[(u64, u64)]>,
}

impl Dma {
    /// A view of all of `mem`.
    pub fn new(mem: Arc<GuestMmap>) -> Self {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for region in mem.iter() {
            let (first, last) = (region.start_addr().0, region.last_addr().0);
            match runs.last_mut() {
                Some(run) if run.1.checked_add(1) == Some(first) => run.1 = last,
                _ => runs.push((first, last)),
            }
        }
        Self { mem, runs: runs.into() }
    }

    /// The map itself, for code that works with vm-memory's traits.
    pub fn memory(&self) -> &GuestMmap {
        &self.mem
    }

    /// Whether `len` bytes from `addr` are RAM.
    #[inline]
    pub fn check(&self, addr: GuestAddress, len: u64) -> Result<(), DmaError> {
        let Some(more) = len.checked_sub(1) else { return Ok(()) };
        let fits = |&(first, last): &(u64, u64)| first <= addr.0 && addr.0 <= last && more <= last - addr.0;
        if self.runs.iter().any(fits) { Ok(()) } else { Err(DmaError::NotRam { addr: addr.0, len }) }
    }

    /// Copies guest memory into `buf`.
    pub fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), DmaError> {
        let len = buf.len() as u64;
        if let Some(slice) = self.slice(addr, buf.len()) {
            slice.copy_to(buf);
            return Ok(());
        }
        self.check(addr, len)?;
        self.mem.read_slice(buf, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }

    /// Copies `buf` into guest memory.
    pub fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), DmaError> {
        let len = buf.len() as u64;
        if let Some(slice) = self.slice(addr, buf.len()) {
            slice.copy_from(buf);
            return Ok(());
        }
        self.check(addr, len)?;
        self.mem.write_slice(buf, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }

    /// Reads one plain value. It may be torn where the guest writes it at the same time.
    pub fn read_obj<T: ByteValued>(&self, addr: GuestAddress) -> Result<T, DmaError> {
        let mut value = T::zeroed();
        self.read(addr, value.as_mut_slice())?;
        Ok(value)
    }

    /// Writes one plain value.
    pub fn write_obj<T: ByteValued>(&self, addr: GuestAddress, value: T) -> Result<(), DmaError> {
        self.write(addr, value.as_slice())
    }

    /// Reads an integer in one piece. `addr` must be a multiple of its size. Like the standard library's
    /// atomics, panics for an `order` that a load cannot have.
    pub fn load<T: AtomicAccess>(&self, addr: GuestAddress, order: Ordering) -> Result<T, DmaError> {
        let slice = self.atomic::<T>(addr)?;
        slice.load(0, order).map_err(|_| Self::misaligned::<T>(addr))
    }

    /// Writes an integer in one piece. `addr` must be a multiple of its size. Like the standard library's
    /// atomics, panics for an `order` that a store cannot have.
    pub fn store<T: AtomicAccess>(
        &self,
        addr: GuestAddress,
        value: T,
        order: Ordering,
    ) -> Result<(), DmaError> {
        let slice = self.atomic::<T>(addr)?;
        slice.store(value, 0, order).map_err(|_| Self::misaligned::<T>(addr))
    }

    /// Looks up `len` bytes from `addr` once, for many accesses. They must be RAM in one piece.
    pub fn window(&self, addr: GuestAddress, len: u64) -> Result<Window, DmaError> {
        self.check(addr, len)?;
        let split = DmaError::Split { addr: addr.0, len };
        let region = self.mem.find_region(addr).ok_or(DmaError::NotRam { addr: addr.0, len })?;
        let offset = addr.0 - region.start_addr().0;
        let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len)) else {
            return Err(split);
        };
        Window::new(region.get_mmap(), addr.0, offset, len).ok_or(split)
    }

    /// Copies the bytes of `segments` into `buf`, as many as both have; returns how many.
    pub fn gather<'a>(&self, segments: impl Into<Segments<'a>>, buf: &mut [u8]) -> Result<usize, DmaError> {
        let mut rest = buf;
        let mut copied = 0;
        for segment in segments.into().take(rest.len() as u64).iter() {
            let Some((piece, tail)) = rest.split_at_mut_checked(segment.len as usize) else { break };
            self.read(segment.addr, piece)?;
            copied += piece.len();
            rest = tail;
        }
        Ok(copied)
    }

    /// Copies `buf` into the bytes of `segments`, as many as both have; returns how many. Where a segment is
    /// not RAM, those before it have been written.
    pub fn scatter<'a>(&self, segments: impl Into<Segments<'a>>, buf: &[u8]) -> Result<usize, DmaError> {
        let mut rest = buf;
        let mut copied = 0;
        for segment in segments.into().take(rest.len() as u64).iter() {
            let Some((piece, tail)) = rest.split_at_checked(segment.len as usize) else { break };
            self.write(segment.addr, piece)?;
            copied += piece.len();
            rest = tail;
        }
        Ok(copied)
    }

    /// `len` bytes from `addr` where they lie in one region, which is nearly always.
    fn slice(&self, addr: GuestAddress, len: usize) -> Option<VolatileSlice<'_, MS<'_, GuestMmap>>> {
        let region = self.mem.find_region(addr)?;
        region.get_slice(MemoryRegionAddress(addr.0 - region.start_addr().0), len).ok()
    }

    /// Regions begin and end on page boundaries, so that no aligned integer lies in two.
    fn atomic<T>(&self, addr: GuestAddress) -> Result<VolatileSlice<'_, MS<'_, GuestMmap>>, DmaError> {
        let len = size_of::<T>();
        if let Some(slice) = self.slice(addr, len) {
            return Ok(slice);
        }
        self.check(addr, len as u64)?;
        Err(Self::misaligned::<T>(addr))
    }

    fn misaligned<T>(addr: GuestAddress) -> DmaError {
        DmaError::Misaligned { addr: addr.0, align: size_of::<T>() }
    }
}

#[cfg(test)]
mod tests;
