//! Which pages of a chunk of memory a diff has.

use std::ops::Range;

use super::memory::{CHUNK, PAGE};

const WORDS: usize = CHUNK as usize / PAGE / u64::BITS as usize;
/// Bytes of a set in a file.
pub(super) const BYTES: usize = WORDS * 8;

/// A set of pages of a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PageSet([u64; WORDS]);

impl PageSet {
    /// Adds pages.
    pub(super) fn insert(&mut self, pages: Range<usize>) {
        for page in pages {
            if let Some(word) = self.0.get_mut(page / 64) {
                *word |= 1 << (page % 64);
            }
        }
    }

    pub(super) fn contains(&self, page: usize) -> bool {
        self.0.get(page / 64).is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// How many pages.
    pub(super) fn count(&self) -> usize {
        self.0.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// Those that another set has not.
    pub(super) fn without(&self, other: &Self) -> Self {
        let mut rest = *self;
        rest.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= !other);
        rest
    }

    /// Adds another set.
    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(word, other)| *word |= other);
    }

    /// Ranges of pages, ascending, each as long as it can be.
    pub(super) fn runs(&self) -> impl Iterator<Item = Range<usize>> + use<'_> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let all = WORDS * 64;
            let start = (from..all).find(|page| self.contains(*page))?;
            let end = (start..all).find(|page| !self.contains(*page)).unwrap_or(all);
            from = end;
            Some(start..end)
        })
    }

    /// The runs as bytes of the chunk.
    pub(super) fn bytes(&self) -> impl Iterator<Item = Range<usize>> + use<'_> {
        self.runs().map(|run| run.start * PAGE..run.end * PAGE)
    }

    pub(super) fn save(&self) -> impl Iterator<Item = u8> + use<> {
        self.0.into_iter().flat_map(u64::to_le_bytes)
    }

    pub(super) fn load(bytes: &[u8; BYTES]) -> Self {
        let mut set = Self::default();
        let words = bytes.chunks(8).filter_map(|word| word.try_into().ok());
        set.0.iter_mut().zip(words).for_each(|(word, bytes)| *word = u64::from_le_bytes(bytes));
        set
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_inserted_in_runs() {
        let mut set = PageSet::default();
        assert!(set.is_empty() && set.runs().next().is_none());
        for pages in [0..1, 60..70, 70..71, 511..512, 9..9] {
            set.insert(pages);
        }
        assert!(set.runs().eq([0..1, 60..71, 511..512]));
        assert!(set.bytes().eq([0..4096, 60 * 4096..71 * 4096, 511 * 4096..2 << 20]));
        assert_eq!((set.count(), set.contains(65), set.contains(71)), (13, true, false));
        let bytes: Vec<u8> = set.save().collect();
        assert_eq!(PageSet::load(&bytes.try_into().unwrap()), set);
        let mut other = PageSet::default();
        other.insert(0..65);
        assert!(set.without(&other).runs().eq([65..71, 511..512]));
        other.add(&set);
        assert!(other.runs().eq([0..71, 511..512]));
        other.insert(0..512);
        assert!(other.runs().eq(std::iter::once(0..512)));
    }
}
