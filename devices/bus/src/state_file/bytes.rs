//! Takes bytes from a part of a file, and names the part where they are missing.

use super::error::FormatError;
use super::format::Part;

/// What is left of a part of a file.
pub(super) struct Bytes<'a> {
    pub(super) left: &'a [u8],
    pub(super) part: Part,
}

impl<'a> Bytes<'a> {
    pub(super) fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let truncated = FormatError::Truncated { part: self.part, field };
        let (array, left) = self.left.split_first_chunk().ok_or(truncated)?;
        self.left = left;
        Ok(*array)
    }

    pub(super) fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let truncated = FormatError::Truncated { part: self.part, field };
        let (bytes, left) = self.left.split_at_checked(len).ok_or(truncated)?;
        self.left = left;
        Ok(bytes)
    }

    /// An id or a kind: its length, then itself.
    pub(super) fn name(&mut self, field: &'static str) -> Result<&'a [u8], FormatError> {
        let [len] = self.array(field)?;
        self.take(len.into(), field)
    }
}
