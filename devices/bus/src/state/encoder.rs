//! Writes a device's fields.

use std::borrow::Cow;

use super::field::{Field, length};
use super::saved::SavedState;

/// Most devices have no more bytes than this, so that their payload is allocated once.
const TYPICAL: usize = 256;

/// Writes a device's fields, in the order of their tags.
#[derive(Debug)]
pub struct Encoder {
    kind: &'static str,
    version: u16,
    payload: Vec<u8>,
    /// Tag of the field before.
    last: Option<u16>,
}

impl Encoder {
    /// A state of this kind and version, without fields so far.
    pub fn new(kind: &'static str, version: u16) -> Self {
        Self { kind, version, payload: Vec::with_capacity(TYPICAL), last: None }
    }

    /// Appends a byte.
    pub fn u8(&mut self, field: Field, value: u8) -> &mut Self {
        self.number(field, [value])
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, field: Field, value: u16) -> &mut Self {
        self.number(field, value.to_le_bytes())
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, field: Field, value: u32) -> &mut Self {
        self.number(field, value.to_le_bytes())
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, field: Field, value: u64) -> &mut Self {
        self.number(field, value.to_le_bytes())
    }

    /// Appends 64 bits with a sign.
    pub fn i64(&mut self, field: Field, value: i64) -> &mut Self {
        self.number(field, value.to_le_bytes())
    }

    /// Appends a truth value.
    pub fn bool(&mut self, field: Field, value: bool) -> &mut Self {
        self.u8(field, value.into())
    }

    /// Appends bytes; a [`Decoder`](super::Decoder) reads them back as [`array`](super::Decoder::array) if their
    /// number is always the same.
    pub fn bytes(&mut self, field: Field, value: &[u8]) -> &mut Self {
        self.begin(field, value.len());
        self.payload.extend_from_slice(value);
        self
    }

    /// Appends a record: fields of their own, with tags of their own, which `f` writes.
    pub fn nested(&mut self, field: Field, f: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.begin(field, 0);
        self.inside(start, f)
    }

    /// Appends a list of records, one for each of `items`, which `f` writes.
    pub fn list<T>(
        &mut self,
        field: Field,
        items: impl IntoIterator<Item = T>,
        mut f: impl FnMut(&mut Self, T),
    ) -> &mut Self {
        let start = self.begin(field, 0);
        self.inside(start, |list| {
            for item in items {
                list.payload.extend_from_slice(&length(0));
                list.inside(list.payload.len(), |record| f(record, item));
            }
        })
    }

    /// The state.
    pub fn finish(self) -> SavedState<'static> {
        SavedState::new(self.kind, self.version, Cow::Owned(self.payload))
    }

    #[inline]
    fn number<const N: usize>(&mut self, field: Field, value: [u8; N]) -> &mut Self {
        self.begin(field, N);
        self.payload.extend_from_slice(&value);
        self
    }

    /// Appends a field's tag and the length of its value, and returns where that begins.
    #[inline]
    fn begin(&mut self, field: Field, len: usize) -> usize {
        debug_assert!(self.last.is_none_or(|last| last < field.tag), "{field:?} after {:?}", self.last);
        self.last = Some(field.tag);
        self.payload.extend_from_slice(&field.head(len));
        self.payload.len()
    }

    /// Has `f` append what begins at `start`, and puts its length before it.
    fn inside(&mut self, start: usize, f: impl FnOnce(&mut Self)) -> &mut Self {
        let outer = self.last.take();
        f(self);
        self.last = outer;
        let len = length(self.payload.len() - start);
        if let Some((_, place)) = self.payload.get_mut(..start).and_then(<[u8]>::split_last_chunk_mut) {
            *place = len;
        }
        self
    }
}
