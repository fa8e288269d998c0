//! Scattered guest memory: the descriptors of a chain, and the byte ranges that devices cut out of them.

use vm_memory::GuestAddress;

/// A run of guest-physical memory: one descriptor of a chain, one piece of a DMA transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: GuestAddress,
    /// Length in bytes.
    pub len: u32,
}

/// A byte range of a list of [`Segment`]s. A driver may cut a request into descriptors anywhere, so a device
/// takes the parts of a request by their byte counts:
///
/// ```
/// use ossature_memory::{Segment, Segments, vm_memory::GuestAddress};
///
/// let chain = [
///     Segment { addr: GuestAddress(0x1000), len: 24 },
///     Segment { addr: GuestAddress(0x8000), len: 500 },
/// ];
/// let all = Segments::from(&chain);
/// let (header, data) = (all.take(16), all.skip(16));
/// assert_eq!((header.len(), data.len()), (16, 508));
/// assert_eq!(data.iter().next(), Some(Segment { addr: GuestAddress(0x1010), len: 8 }));
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Segments<'a> {
    list: &'a [Segment],
    /// Bytes of the first segment that do not belong to the range; fewer than it has.
    skip: u32,
    len: u64,
}

impl<'a> Segments<'a> {
    /// The first `len` bytes of `list`, which the caller knows to have as many: nothing is added up.
    #[inline]
    pub fn first_bytes(list: &'a [Segment], len: u64) -> Self {
        Self { list, skip: 0, len }
    }

    /// Bytes in the range.
    #[inline]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true if the range has no bytes.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The range without its first `bytes`; empty where it has no more.
    #[inline]
    pub fn skip(self, bytes: u64) -> Self {
        let mut list = self.list;
        let mut skip = u64::from(self.skip) + bytes.min(self.len);
        while let Some((first, rest)) = list.split_first() {
            if skip < u64::from(first.len) {
                break;
            }
            skip -= u64::from(first.len);
            list = rest;
        }
        // The loop leaves less than a segment's length, or 0 where the list has come to its end.
        Self { list, skip: skip as u32, len: self.len.saturating_sub(bytes) }
    }

    /// The first `bytes` of the range; all of it where it has no more.
    #[inline]
    pub fn take(self, bytes: u64) -> Self {
        Self { len: self.len.min(bytes), ..self }
    }

    /// The range's pieces, in order, none of them empty.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = Segment> + use<'a> {
        let (mut skip, mut left) = (self.skip, self.len);
        self.list
            .iter()
            .map_while(move |segment| {
                if left == 0 {
                    return None;
                }
                let len = u64::from(segment.len - skip).min(left) as u32;
                // Whoever reads or writes finds out whether the sum is RAM; RAM never wraps.
                let addr = GuestAddress(segment.addr.0.wrapping_add(skip.into()));
                skip = 0;
                left -= u64::from(len);
                Some(Segment { addr, len })
            })
            .filter(|segment| segment.len != 0)
    }

    /// Where the first `bytes` are, if they are in the first piece.
    #[inline]
    pub(crate) fn front(&self, bytes: usize) -> Option<GuestAddress> {
        let first = self.list.first()?;
        let whole = bytes <= (first.len - self.skip) as usize && bytes as u64 <= self.len;
        whole.then_some(GuestAddress(first.addr.0.wrapping_add(self.skip.into())))
    }

    /// At most how many pieces [`iter`](Self::iter) has.
    #[inline]
    pub(crate) fn max_pieces(&self) -> usize {
        self.list.len()
    }
}

impl<'a> From<&'a [Segment]> for Segments<'a> {
    fn from(list: &'a [Segment]) -> Self {
        let len = list.iter().map(|segment| u64::from(segment.len)).sum();
        Segments { list, skip: 0, len }.skip(0)
    }
}

impl<'a, const N: usize> From<&'a [Segment; N]> for Segments<'a> {
    fn from(list: &'a [Segment; N]) -> Self {
        list.as_slice().into()
    }
}

impl<'a> From<&'a Vec<Segment>> for Segments<'a> {
    fn from(list: &'a Vec<Segment>) -> Self {
        list.as_slice().into()
    }
}

#[cfg(test)]
mod tests;
