//! Guest memory that the kernel works with after a call has returned: scattered pieces, kept mapped.

use std::ffi::c_void;
use std::sync::Arc;

use libc::iovec;

use crate::{Dma, DmaError, Segment, Segments};

/// Pieces of guest memory as the kernel takes them for asynchronous I/O (io_uring, vhost): they stay mapped, whatever
/// becomes of the guest's memory map, until they are [released](Self::release) or pinned anew. The storage is used
/// again.
///
/// ```
/// use std::sync::Arc;
/// use ossature_memory::{Pinned, Ram, RamConfig, Segment, vm_memory::GuestAddress};
///
/// let dma = Arc::new(Ram::new(&RamConfig::new(1 << 20))?.dma());
/// let segments = [Segment { addr: GuestAddress(0x1000), len: 4096 }];
/// let mut pinned = Pinned::default();
/// pinned.pin(&dma, &segments)?;
/// // The kernel has filled 512 bytes.
/// pinned.advance(512);
/// assert_eq!((pinned.moved(), pinned.left()), (512, 3584));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Default)]
pub struct Pinned {
    dma: Option<Arc<Dma>>,
    /// What was pinned, for the pages that become dirty.
    segments: Vec<Segment>,
    vecs: Vec<iovec>,
    /// The pieces before this one were transferred, and what was transferred of this one is cut off.
    next: usize,
    moved: u64,
    left: u64,
}

// SAFETY: the pointers name memory of the process, which `dma` keeps mapped, and are only handed to the kernel, as those
// of a window are.
unsafe impl Send for Pinned {}

impl Pinned {
    /// Pins `segments` of what `dma` shows, instead of what was pinned before. Fails if one of them is not RAM; then
    /// nothing is pinned.
    pub fn pin<'a>(&mut self, dma: &Arc<Dma>, segments: impl Into<Segments<'a>>) -> Result<(), DmaError> {
        let segments = segments.into();
        self.release();
        self.segments.extend(segments.iter());
        if let Err(error) = dma.pieces(segments, |piece| self.vecs.push(piece)) {
            self.release();
            return Err(error);
        }
        self.left = segments.len();
        self.dma = Some(Arc::clone(dma));
        Ok(())
    }

    /// Nothing is pinned any more: the kernel has done with it.
    pub fn release(&mut self) {
        self.dma = None;
        self.segments.clear();
        self.vecs.clear();
        (self.next, self.moved, self.left) = (0, 0, 0);
    }

    /// The pieces that are left: the address of an array of `iovec` and its length, at most the kernel's limit of 1024.
    /// The array stays where it is until the next call of a method that takes `&mut self`.
    pub fn iovecs(&self) -> (*const c_void, u32) {
        let rest = self.vecs.get(self.next..).unwrap_or_default();
        (rest.as_ptr().cast(), rest.len().min(1024) as u32)
    }

    /// Address and length of what is left, if it is one piece.
    pub fn single(&self) -> Option<(*mut c_void, usize)> {
        match self.vecs.get(self.next..) {
            Some([piece]) => Some((piece.iov_base, piece.iov_len)),
            _ => None,
        }
    }

    /// Notes that the kernel has transferred the next `bytes`, of those that are left at most.
    pub fn advance(&mut self, bytes: u64) {
        let bytes = bytes.min(self.left);
        self.moved += bytes;
        self.left -= bytes;
        let mut rest = bytes as usize;
        while let Some(piece) = self.vecs.get_mut(self.next).filter(|_| rest > 0) {
            let part = rest.min(piece.iov_len);
            piece.iov_base = piece.iov_base.wrapping_byte_add(part);
            piece.iov_len -= part;
            rest -= part;
            if piece.iov_len == 0 {
                self.next += 1;
            }
        }
    }

    /// Marks the first `bytes` of what was pinned as dirty, after the kernel has written there.
    pub fn mark_dirty(&self, bytes: u64) {
        if let Some(dma) = &self.dma {
            dma.mark_dirty(Segments::from(&self.segments).take(bytes));
        }
    }

    /// Bytes that were transferred.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Bytes that were not.
    pub fn left(&self) -> u64 {
        self.left
    }
}

#[cfg(test)]
mod tests;
