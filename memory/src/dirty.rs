//! Which pages of a region were written: a bitmap that can be switched on and off while the machine exists.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use vm_memory::bitmap::{Bitmap, NewBitmap, RefSlice, WithBitmapSlice};

use crate::host_page_size;
use crate::mapping::Mapping;

const BITS: usize = u64::BITS as usize;

/// One bit per [page](host_page_size) of a region, set by every write that goes through this process: by
/// [`Dma`](crate::Dma), by [`Window`](crate::Window) and by vm-memory's own accessors. Writes of vCPUs are
/// not seen here. A [`DirtyLog`](crate::DirtyLog) switches it on, takes its bits and joins them with those.
///
/// Off, which is the state it begins in, it costs a write one relaxed load and has no memory of its own.
/// Switched on for the first time, it allocates one bit per page, which are kept until the region goes away.
///
/// A write marks its pages after it has changed them. Whoever takes the bits therefore sees the bytes behind
/// each bit, and a write that is under way while the bits are taken is in the next take.
#[derive(Debug, Default)]
pub struct DirtyBitmap {
    on: AtomicBool,
    pages: usize,
    /// The logarithm of the page size.
    shift: u32,
    words: OnceLock<Box<[AtomicU64]>>,
    // The mapping that the region lies in: several regions share one, and the bitmap is the part of
    // vm-memory's region that is ours.
    mapping: Option<Arc<Mapping>>,
}

impl DirtyBitmap {
    /// The bitmap of a region of `len` bytes that lies in `mapping`.
    pub(crate) fn of(mapping: Arc<Mapping>, len: usize) -> Self {
        Self { mapping: Some(mapping), ..Self::with_len(len) }
    }

    fn with_pages_of(page_size: usize, len: usize) -> Self {
        Self { pages: len.div_ceil(page_size), shift: page_size.trailing_zeros(), ..Self::default() }
    }

    /// What the region lies in, if [`Ram`](crate::Ram) made it.
    pub(crate) fn mapping(&self) -> Option<&Arc<Mapping>> {
        self.mapping.as_ref()
    }

    /// How many pages it covers; the last one may be covered in part.
    pub(crate) fn pages(&self) -> usize {
        self.pages
    }

    /// Returns true if writes are tracked.
    pub(crate) fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Starts tracking with all pages clean. Writes that run at the same time may be missed: switch while the
    /// devices are quiet.
    pub(crate) fn start(&self) {
        for word in self.words() {
            word.store(0, Ordering::Relaxed);
        }
        self.on.store(true, Ordering::SeqCst);
    }

    /// Stops tracking. What was not taken is lost.
    pub(crate) fn stop(&self) {
        self.on.store(false, Ordering::SeqCst);
    }

    /// Takes the dirty pages and makes them clean: bit `n % 64` of word `n / 64` is page `n`, which is the
    /// layout of `KVM_GET_DIRTY_LOG`. Each mark is in exactly one take. Empty if tracking was never on.
    pub(crate) fn take(&self) -> Vec<u64> {
        let words = self.words.get().map_or(&[][..], |words| words);
        words.iter().map(|word| word.swap(0, Ordering::AcqRel)).collect()
    }

    fn words(&self) -> &[AtomicU64] {
        self.words.get_or_init(|| (0..self.pages.div_ceil(BITS)).map(|_| AtomicU64::new(0)).collect())
    }

    #[inline(never)]
    fn mark(&self, offset: usize, len: usize) {
        let (Some(words), Some(last)) = (self.words.get(), len.checked_sub(1)) else {
            return;
        };
        let first = offset >> self.shift;
        let last = (offset.saturating_add(last) >> self.shift).min(self.pages.saturating_sub(1));
        let mut page = first;
        while page <= last {
            let Some(word) = words.get(page / BITS) else { return };
            let end = (page | (BITS - 1)).min(last);
            let mask = (u64::MAX >> (BITS - 1 - (end - page))) << (page % BITS);
            // Also where the bits are set already: the store orders the bytes before the take that
            // clears them, which a load that finds them set does not.
            word.fetch_or(mask, Ordering::Release);
            page = end + 1;
        }
    }
}

impl<'a> WithBitmapSlice<'a> for DirtyBitmap {
    type S = RefSlice<'a, Self>;
}

impl Bitmap for DirtyBitmap {
    #[inline]
    fn mark_dirty(&self, offset: usize, len: usize) {
        if self.on.load(Ordering::Relaxed) {
            self.mark(offset, len);
        }
    }

    fn dirty_at(&self, offset: usize) -> bool {
        let page = offset >> self.shift;
        self.words
            .get()
            .and_then(|words| words.get(page / BITS))
            .is_some_and(|word| word.load(Ordering::Acquire) >> (page % BITS) & 1 != 0)
    }

    #[inline]
    fn slice_at(&self, offset: usize) -> RefSlice<'_, Self> {
        RefSlice::new(self, offset)
    }
}

impl NewBitmap for DirtyBitmap {
    fn with_len(len: usize) -> Self {
        Self::with_pages_of(host_page_size(), len)
    }
}

#[cfg(test)]
mod tests;
