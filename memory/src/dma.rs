//! The view of guest RAM that a device gets: bounds-checked copies, never a reference.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use vm_memory::{AtomicAccess, ByteValued, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::published::{Published, Run, Snapshot};
use crate::{GuestMmap, Segments, View, Window};

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
///
/// A view shows RAM as it was when the view was made or last [refreshed](Self::refresh), and keeps all of that
/// mapped. A clone shows what the original does, and is refreshed by itself.
#[derive(Clone, Debug)]
pub struct Dma {
    now: Snapshot,
    published: Arc<Published>,
}

impl Dma {
    /// A view of all of `mem`, which stays as it is.
    pub fn new(mem: Arc<GuestMmap>) -> Self {
        Self::following(Arc::new(Published::new(mem, Vec::new())))
    }

    /// A view of the newest version of a map.
    pub(crate) fn following(published: Arc<Published>) -> Self {
        Self { now: published.snapshot(), published }
    }

    pub(crate) fn published(&self) -> &Arc<Published> {
        &self.published
    }

    /// Makes it a view of RAM as it is now, with all slots that were added and without those that were removed. Returns
    /// true if anything has changed: what was made of the view before, such as a [`Window`] or a [`Run`], is then of
    /// the past.
    ///
    /// If nothing has changed, it costs two loads. A device calls it before it begins to look at a queue, not once per
    /// access.
    #[inline]
    pub fn refresh(&mut self) -> bool {
        let changed = !self.published.is_newest(self.now.generation);
        if changed {
            self.follow();
        }
        changed
    }

    #[cold]
    #[inline(never)]
    fn follow(&mut self) {
        self.now = self.published.snapshot();
    }

    /// Returns true if the other shows the same version of the same memory map.
    #[inline]
    pub fn shows_same_as(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.now.mem, &other.now.mem)
    }

    /// The map itself, for code that works with vm-memory's traits.
    pub fn memory(&self) -> &GuestMmap {
        &self.now.mem
    }

    /// Returns an error unless `len` bytes from `addr` are RAM.
    #[inline]
    pub fn check(&self, addr: GuestAddress, len: u64) -> Result<(), DmaError> {
        if len == 0 || self.now.runs.iter().any(|run| run.holds(addr, len)) {
            Ok(())
        } else {
            Err(DmaError::NotRam { addr: addr.0, len })
        }
    }

    /// The longest run of RAM that holds `addr`.
    pub fn run(&self, addr: GuestAddress) -> Result<Run, DmaError> {
        let run = self.now.runs.iter().find(|run| run.holds(addr, 1));
        run.copied().ok_or(DmaError::NotRam { addr: addr.0, len: 1 })
    }

    /// `len` bytes from `addr`, for a few accesses; `None` where they are not RAM in one region. Cheaper than a
    /// [`window`](Self::window).
    #[inline]
    pub fn view(&self, addr: GuestAddress, len: usize) -> Option<View<'_>> {
        self.find(addr, |region, at| region.view(at, len))
    }

    /// Copies guest memory into `buf`.
    pub fn read(&self, addr: GuestAddress, buf: &mut [u8]) -> Result<(), DmaError> {
        if self.in_region(addr, |region, at| region.read(at, buf)).is_some() {
            return Ok(());
        }
        let len = buf.len() as u64;
        self.check(addr, len)?;
        self.now.mem.read_slice(buf, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }

    /// Copies `buf` into guest memory.
    pub fn write(&self, addr: GuestAddress, buf: &[u8]) -> Result<(), DmaError> {
        if self.in_region(addr, |region, at| region.write(at, buf)).is_some() {
            return Ok(());
        }
        let len = buf.len() as u64;
        self.check(addr, len)?;
        self.now.mem.write_slice(buf, addr).map_err(|_| DmaError::NotRam { addr: addr.0, len })
    }

    /// Reads one plain value, once. It may be torn where the guest writes it at the same time.
    #[inline]
    pub fn read_obj<T: ByteValued>(&self, addr: GuestAddress) -> Result<T, DmaError> {
        if let Some(value) = self.in_region(addr, |region, at| region.read_obj(at)) {
            return Ok(value);
        }
        let mut value = T::zeroed();
        self.read(addr, value.as_mut_slice())?;
        Ok(value)
    }

    /// Writes one plain value.
    #[inline]
    pub fn write_obj<T: ByteValued>(&self, addr: GuestAddress, value: T) -> Result<(), DmaError> {
        match self.in_region(addr, |region, at| region.write_obj(at, value)) {
            Some(()) => Ok(()),
            None => self.write(addr, value.as_slice()),
        }
    }

    /// Reads an integer in one piece. `addr` must be a multiple of its size. Like the standard library's
    /// atomics, panics for an `order` that a load cannot have.
    pub fn load<T: AtomicAccess>(&self, addr: GuestAddress, order: Ordering) -> Result<T, DmaError> {
        self.in_region(addr, |region, at| region.load(at, order)).ok_or_else(|| self.not_atomic::<T>(addr))
    }

    /// Writes an integer in one piece. `addr` must be a multiple of its size. Like the standard library's
    /// atomics, panics for an `order` that a store cannot have.
    pub fn store<T: AtomicAccess>(
        &self,
        addr: GuestAddress,
        value: T,
        order: Ordering,
    ) -> Result<(), DmaError> {
        self.in_region(addr, |region, at| region.store(at, value, order))
            .ok_or_else(|| self.not_atomic::<T>(addr))
    }

    /// Looks up `len` bytes from `addr` once, for many accesses. They must be RAM in one piece.
    pub fn window(&self, addr: GuestAddress, len: u64) -> Result<Window, DmaError> {
        self.check(addr, len)?;
        let split = DmaError::Split { addr: addr.0, len };
        let region = self.now.mem.find_region(addr).ok_or(DmaError::NotRam { addr: addr.0, len })?;
        let offset = addr.0 - region.start_addr().0;
        let (Ok(offset), Ok(len)) = (usize::try_from(offset), usize::try_from(len)) else {
            return Err(split);
        };
        Window::new(region.get_mmap(), addr.0, offset, len).ok_or(split)
    }

    /// Returns true if writes to any of the RAM are tracked.
    pub(crate) fn is_tracked(&self) -> bool {
        self.now.regions.iter().any(Window::is_tracked)
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

    /// The value at the start of `segments`, read once; `None` where they are shorter.
    #[inline(always)] // the header of every request, whatever else its device does with one
    pub fn gather_obj<'a, T: ByteValued>(
        &self,
        segments: impl Into<Segments<'a>>,
    ) -> Result<Option<T>, DmaError> {
        let segments = segments.into();
        match segments.front(size_of::<T>()) {
            Some(addr) => self.read_obj(addr).map(Some),
            None => self.gather_pieces(segments),
        }
    }

    /// The same where it lies in pieces, which drivers hardly ever do.
    #[cold]
    #[inline(never)]
    fn gather_pieces<T: ByteValued>(&self, segments: Segments<'_>) -> Result<Option<T>, DmaError> {
        let mut value = T::zeroed();
        let bytes = value.as_mut_slice();
        let whole = bytes.len();
        Ok((self.gather(segments, bytes)? == whole).then_some(value))
    }

    /// Writes `value` to the first bytes of `segments`, as many as they have; returns how many.
    #[inline]
    pub fn scatter_obj<'a, T: ByteValued>(
        &self,
        segments: impl Into<Segments<'a>>,
        value: T,
    ) -> Result<usize, DmaError> {
        let segments = segments.into();
        match segments.front(size_of::<T>()) {
            Some(addr) => self.write_obj(addr, value).map(|()| size_of::<T>()),
            None => self.scatter(segments, value.as_slice()),
        }
    }

    /// What `access` makes of the region and the offset in it that `addr` means, if it lies in one region from
    /// its first to its last byte.
    #[inline]
    pub(crate) fn in_region<T>(
        &self,
        addr: GuestAddress,
        mut access: impl FnMut(&Window, usize) -> Result<T, DmaError>,
    ) -> Option<T> {
        self.find(addr, |region, at| access(region, at).ok())
    }

    /// What the first region makes of `addr` that can, given the offset in it.
    #[inline]
    fn find<'a, T>(
        &'a self,
        addr: GuestAddress,
        mut access: impl FnMut(&'a Window, usize) -> Option<T>,
    ) -> Option<T> {
        let mut try_in = |region: &'a Window| {
            // An address below the region wraps to an offset that no region has.
            access(region, usize::try_from(addr.0.wrapping_sub(region.guest_address())).ok()?)
        };
        // Not a loop from the start on: most guests have no RAM but in the first region.
        if let Some(found) = self.now.front.as_ref().and_then(&mut try_in) {
            return Some(found);
        }
        self.now.regions.iter().skip(1).find_map(try_in)
    }

    /// Why there is no integer at `addr`. Regions begin and end on page boundaries, so that no aligned integer
    /// lies in two.
    fn not_atomic<T>(&self, addr: GuestAddress) -> DmaError {
        let (align, len) = (size_of::<T>(), size_of::<T>() as u64);
        self.check(addr, len).err().unwrap_or(DmaError::Misaligned { addr: addr.0, align })
    }
}

#[cfg(test)]
mod tests;
