//! The tag and the name of a field.

/// Tags from here on mark fields that a reader may skip if it does not know them.
const MAY_BE_SKIPPED: u16 = 0x8000;

/// Bytes of a tag and a length.
pub(super) const HEAD: usize = 2 + 4;

/// A field of a kind of state, or of a record in it: a constant next to the code that saves and restores it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    pub(super) tag: u16,
    pub(super) name: &'static str,
}

impl Field {
    /// The field `tag`, which `name` stands for in errors.
    ///
    /// A tag is unique within its kind, or within its record, for all versions: that of a field which is given up is
    /// never used again. A reader refuses a field that it does not know, unless its tag is 0x8000 or greater: such a
    /// field is skipped, so it must be one that an older device can do without.
    pub const fn new(tag: u16, name: &'static str) -> Self {
        Self { tag, name }
    }

    /// What stands before a value of `len` bytes. One that is longer than can be said makes a payload that is longer
    /// than any file takes.
    #[inline]
    pub(super) fn head(self, len: usize) -> [u8; HEAD] {
        let ([t0, t1], [l0, l1, l2, l3]) = (self.tag.to_le_bytes(), length(len));
        [t0, t1, l0, l1, l2, l3]
    }
}

/// A length, saturated.
#[inline]
pub(super) fn length(len: usize) -> [u8; 4] {
    u32::try_from(len).unwrap_or(u32::MAX).to_le_bytes()
}

/// Returns true if a reader that does not know the field may skip it.
pub(super) fn may_be_skipped(tag: u16) -> bool {
    tag >= MAY_BE_SKIPPED
}
