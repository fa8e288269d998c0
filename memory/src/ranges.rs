//! A set of numbers, kept as the ranges that it consists of.

use std::ops::Range;

/// Ascending, disjoint ranges that do not touch, none of them empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<Range<usize>>);

impl Ranges {
    /// Adds all of `range`.
    pub(crate) fn insert(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end < range.start);
        let end = self.0.partition_point(|other| other.start <= range.end);
        let touched = self.0.get(first..end).unwrap_or_default();
        let start = touched.first().map_or(range.start, |other| other.start.min(range.start));
        let stop = touched.last().map_or(range.end, |other| other.end.max(range.end));
        self.0.splice(first..end, std::iter::once(start..stop));
    }

    /// Removes all of `range`.
    pub(crate) fn remove(&mut self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let first = self.0.partition_point(|other| other.end <= range.start);
        let end = self.0.partition_point(|other| other.start < range.end);
        let touched = self.0.get(first..end).unwrap_or_default();
        let below = touched.first().map(|other| other.start..range.start);
        let above = touched.last().map(|other| range.end..other.end);
        let rest = below.into_iter().chain(above).filter(|rest| !rest.is_empty());
        self.0.splice(first..end, rest.collect::<Vec<_>>());
    }

    /// How many ranges it consists of.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Cuts `range` into pieces that are in the set (`true`) and pieces that are not, in order.
    pub(crate) fn cut(&self, range: Range<usize>) -> Vec<(Range<usize>, bool)> {
        let mut pieces = Vec::new();
        let mut at = range.start;
        let first = self.0.partition_point(|other| other.end <= range.start);
        for other in self.0.iter().skip(first).take_while(|other| other.start < range.end) {
            let inside = other.start.max(at)..other.end.min(range.end);
            pieces.push((at..inside.start, false));
            at = inside.end;
            pieces.push((inside, true));
        }
        pieces.push((at..range.end, false));
        pieces.retain(|(piece, _)| !piece.is_empty());
        pieces
    }
}

#[cfg(test)]
mod tests;
