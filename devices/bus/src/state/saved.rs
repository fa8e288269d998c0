//! What one device saves.

use std::borrow::Cow;

/// The state of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SavedState<'a> {
    /// The kind of device that it is of: a name that its maker keeps unique and never gives another meaning.
    pub kind: Cow<'a, str>,
    /// Version of the payload, counted by the maker of the kind.
    pub version: u16,
    /// The device's fields, as an [`Encoder`](super::Encoder) writes them.
    pub payload: Cow<'a, [u8]>,
}

impl<'a> SavedState<'a> {
    /// A state whose payload comes from somewhere else than an [`Encoder`](super::Encoder).
    pub fn new(kind: impl Into<Cow<'a, str>>, version: u16, payload: impl Into<Cow<'a, [u8]>>) -> Self {
        Self { kind: kind.into(), version, payload: payload.into() }
    }

    /// The same state, borrowed from this one.
    pub fn borrowed(&self) -> SavedState<'_> {
        SavedState::new(&*self.kind, self.version, &*self.payload)
    }

    /// The same, independent of the file that it was read from.
    pub fn into_owned(self) -> SavedState<'static> {
        let Self { kind, version, payload } = self;
        SavedState::new(kind.into_owned(), version, payload.into_owned())
    }
}
