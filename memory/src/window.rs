//! A run of guest RAM that is looked up once and accessed often: rings and descriptor tables.

use std::marker::PhantomData;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use libc::iovec;
use vm_memory::bitmap::Bitmap;
use vm_memory::mmap::MmapRegion;
use vm_memory::{AtomicAccess, AtomicInteger, ByteValued};

use crate::{DirtyBitmap, DmaError};

/// A checked run of guest RAM, made by [`Dma::window`](crate::Dma::window): an access costs a bounds check
/// and no lookup. It keeps the memory mapped as long as it lives. Offsets are bytes from its start; an access
/// that ends outside it is an error and touches nothing. Writes are marked as dirty.
///
/// ```
/// use std::sync::atomic::Ordering;
/// use ossature_memory::{Ram, RamConfig, vm_memory::GuestAddress};
///
/// let ram = Ram::new(&RamConfig::new(1 << 20))?;
/// let ring = ram.dma().window(GuestAddress(0x4000), 518)?;
/// ring.store(2, 7u16, Ordering::Release)?;
/// assert_eq!(ring.load::<u16>(2, Ordering::Acquire)?, 7);
/// assert!(ring.load::<u16>(518, Ordering::Acquire).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Window {
    base: NonNull<u8>,
    len: usize,
    guest: u64,
    offset: usize,
    region: Arc<MmapRegion<DirtyBitmap>>,
}

// SAFETY: the pointer names memory of the process, which the region keeps mapped, and is only used for atomic
// and volatile accesses and for copies, as vm-memory's own slices of the same memory are.
unsafe impl Send for Window {}
// SAFETY: as above.
unsafe impl Sync for Window {}

/// Part of a [`Window`], borrowed: what is read a few times and then forgotten, such as a table that a driver
/// refers to.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    // Not NonNull: to tell a view from none would then be a comparison of the address.
    base: *const u8,
    len: usize,
    window: PhantomData<&'a Window>,
}

impl Default for View<'_> {
    /// A view of nothing.
    fn default() -> Self {
        Self { base: std::ptr::dangling(), len: 0, window: PhantomData }
    }
}

impl View<'_> {
    /// Reads one plain value at `offset` bytes, once; `None` where it ends outside. It may be torn where the guest
    /// writes it at the same time.
    #[inline]
    pub fn read_obj<T: ByteValued>(&self, offset: usize) -> Option<T> {
        // Said so, half of it is the same for every access to a view.
        if offset > self.len.checked_sub(size_of::<T>())? {
            return None;
        }
        // SAFETY: the range is inside the view, which is inside a window that lives; any bits are a T, and a
        // packed value has no alignment.
        Some(unsafe { self.base.add(offset).cast::<Packed<T>>().read_volatile() }.0)
    }
}

/// A value at any address.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Packed<T>(T);

impl Window {
    /// `len` bytes at `offset` of `region`, which the guest has at `guest`; `None` where they are not all in it.
    pub(crate) fn new(
        region: Arc<MmapRegion<DirtyBitmap>>,
        guest: u64,
        offset: usize,
        len: usize,
    ) -> Option<Self> {
        if offset.checked_add(len)? > region.size() {
            return None;
        }
        // SAFETY: the offset was checked to be in the mapping.
        let base = NonNull::new(unsafe { region.as_ptr().add(offset) })?;
        Some(Self { base, len, guest, offset, region })
    }

    /// Bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if it has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The guest-physical address of its first byte.
    #[inline]
    pub fn guest_address(&self) -> u64 {
        self.guest
    }

    /// `len` bytes from `offset`, if all of them are in here.
    #[inline]
    pub fn view(&self, offset: usize, len: usize) -> Option<View<'_>> {
        if offset.checked_add(len)? > self.len {
            return None;
        }
        // SAFETY: the offset is inside the window, which is inside the mapping.
        Some(View { base: unsafe { self.base.add(offset) }.as_ptr(), len, window: PhantomData })
    }

    /// Reads an integer in one piece. Its guest-physical address must be a multiple of its size. Like the
    /// standard library's atomics, panics for an `order` that a load cannot have.
    #[inline]
    pub fn load<T: AtomicAccess>(&self, offset: usize, order: Ordering) -> Result<T, DmaError> {
        let at = self.atomic::<T>(offset)?;
        // SAFETY: the memory is mapped while self lives, holds a T::A at this aligned place (any bits are
        // one), and what we make of it is a shared reference to an atomic.
        Ok(unsafe { at.as_ref() }.load(order).into())
    }

    /// Writes an integer in one piece. Its guest-physical address must be a multiple of its size. Like the
    /// standard library's atomics, panics for an `order` that a store cannot have.
    #[inline]
    pub fn store<T: AtomicAccess>(&self, offset: usize, value: T, order: Ordering) -> Result<(), DmaError> {
        let at = self.atomic::<T>(offset)?;
        // SAFETY: as for load.
        unsafe { at.as_ref() }.store(value.into(), order);
        self.wrote(offset, size_of::<T>());
        Ok(())
    }

    /// Reads one plain value, once. It may be torn where the guest writes it at the same time.
    #[inline]
    pub fn read_obj<T: ByteValued>(&self, offset: usize) -> Result<T, DmaError> {
        let at = self.at(offset, size_of::<T>())?.cast::<Packed<T>>();
        // SAFETY: the range is mapped, any bits are a T, and a packed value has no alignment.
        Ok(unsafe { at.read_volatile() }.0)
    }

    /// Writes one plain value.
    #[inline]
    pub fn write_obj<T: ByteValued>(&self, offset: usize, value: T) -> Result<(), DmaError> {
        self.write_obj_unmarked(offset, value)?;
        self.wrote(offset, size_of::<T>());
        Ok(())
    }

    /// Writes one plain value, which is not marked as dirty before [`mark_dirty`](Self::mark_dirty) is called: once for
    /// many values.
    #[inline]
    pub fn write_obj_unmarked<T: ByteValued>(&self, offset: usize, value: T) -> Result<(), DmaError> {
        let at = self.at(offset, size_of::<T>())?.cast::<T>();
        // SAFETY: the range is mapped.
        unsafe { at.write_unaligned(value) };
        Ok(())
    }

    /// Copies guest memory into `buf`.
    pub fn read(&self, offset: usize, buf: &mut [u8]) -> Result<(), DmaError> {
        let at = self.at(offset, buf.len())?;
        // SAFETY: the range is mapped, and no Rust slice can lie in guest memory.
        unsafe { at.as_ptr().copy_to_nonoverlapping(buf.as_mut_ptr(), buf.len()) };
        Ok(())
    }

    /// Copies `buf` into guest memory.
    pub fn write(&self, offset: usize, buf: &[u8]) -> Result<(), DmaError> {
        let at = self.at(offset, buf.len())?;
        // SAFETY: as for read.
        unsafe { at.as_ptr().copy_from_nonoverlapping(buf.as_ptr(), buf.len()) };
        self.wrote(offset, buf.len());
        Ok(())
    }

    /// `len` bytes at `offset` as the kernel takes them, if all of them are in here.
    #[inline]
    pub(crate) fn iovec(&self, offset: usize, len: usize) -> Result<iovec, DmaError> {
        self.at(offset, len).map(|at| iovec { iov_base: at.as_ptr().cast(), iov_len: len })
    }

    /// Marks `len` bytes at `offset` as dirty, after they were written by other means.
    #[inline]
    pub fn mark_dirty(&self, offset: usize, len: usize) -> Result<(), DmaError> {
        self.at(offset, len).map(|_| self.wrote(offset, len))
    }

    /// Where `len` bytes at `offset` are, if all of them are in here.
    #[inline]
    fn at(&self, offset: usize, len: usize) -> Result<NonNull<u8>, DmaError> {
        if offset.checked_add(len).is_none_or(|end| end > self.len) {
            return Err(DmaError::OutsideWindow { offset, len });
        }
        // SAFETY: the offset is inside the window, which is inside the mapping.
        Ok(unsafe { self.base.add(offset) })
    }

    #[inline]
    fn atomic<T: AtomicAccess>(&self, offset: usize) -> Result<NonNull<T::A>, DmaError> {
        let at = self.at(offset, size_of::<T::A>())?.cast::<T::A>();
        if !at.is_aligned() {
            return Err(DmaError::Misaligned { addr: self.guest + offset as u64, align: align_of::<T::A>() });
        }
        Ok(at)
    }

    /// Returns true if writes are tracked.
    #[inline]
    pub(crate) fn is_tracked(&self) -> bool {
        self.region.bitmap().is_on()
    }

    #[inline]
    fn wrote(&self, offset: usize, len: usize) {
        if self.is_tracked() {
            self.mark(offset, len);
        }
    }

    // Out of line, so that a write that is not tracked does not even look at where it was.
    #[cold]
    #[inline(never)]
    fn mark(&self, offset: usize, len: usize) {
        self.region.bitmap().mark_dirty(self.offset + offset, len);
    }
}

#[cfg(test)]
mod tests;
