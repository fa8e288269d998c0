//! The fields of one device's payload, written and read in the same order.
//!
//! Integers are little-endian, a truth value is a byte of 0 or 1, and a byte string follows its length in 32 bits.

use std::borrow::Cow;

use super::{SavedState, StateError};

/// Most devices have no more bytes than this, so that their payload is allocated once.
const TYPICAL: usize = 256;

/// Writes a device's fields.
#[derive(Debug)]
pub struct Encoder {
    kind: &'static str,
    version: u16,
    payload: Vec<u8>,
}

impl Encoder {
    /// Nothing yet of a state of this kind and version.
    pub fn new(kind: &'static str, version: u16) -> Self {
        Self { kind, version, payload: Vec::with_capacity(TYPICAL) }
    }

    /// Appends a byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.array(&[value])
    }

    /// Appends 16 bits.
    pub fn u16(&mut self, value: u16) -> &mut Self {
        self.array(&value.to_le_bytes())
    }

    /// Appends 32 bits.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.array(&value.to_le_bytes())
    }

    /// Appends 64 bits.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.array(&value.to_le_bytes())
    }

    /// Appends 64 bits with a sign.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.array(&value.to_le_bytes())
    }

    /// Appends a truth value.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(value.into())
    }

    /// Appends bytes whose number is always the same.
    pub fn array<const N: usize>(&mut self, value: &[u8; N]) -> &mut Self {
        self.payload.extend_from_slice(value);
        self
    }

    /// Appends bytes of any number.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        // A longer string makes a payload that no file takes.
        self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        self.payload.extend_from_slice(value);
        self
    }

    /// The state.
    pub fn finish(self) -> SavedState<'static> {
        SavedState { kind: self.kind, version: self.version, payload: Cow::Owned(self.payload) }
    }
}

/// Reads a device's fields. Each is named, for the refusal.
#[derive(Debug)]
pub struct Decoder<'a> {
    left: &'a [u8],
}

impl<'a> Decoder<'a> {
    /// The fields of `state`, if it is of this kind and version.
    pub fn new(state: &'a SavedState<'_>, kind: &'static str, version: u16) -> Result<Self, StateError> {
        if state.kind != kind {
            return Err(StateError::Kind { expected: kind, found: state.kind.to_owned() });
        }
        if state.version != version {
            return Err(StateError::Version { kind, found: state.version, known: version });
        }
        Ok(Self { left: &state.payload })
    }

    /// The next byte.
    pub fn u8(&mut self, field: &'static str) -> Result<u8, StateError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    /// The next byte, if it is `allowed`.
    pub fn u8_where(
        &mut self,
        field: &'static str,
        allowed: impl FnOnce(u8) -> bool,
    ) -> Result<u8, StateError> {
        let value = self.u8(field)?;
        if allowed(value) { Ok(value) } else { Err(StateError::Value { field, value: value.into() }) }
    }

    /// The next 16 bits.
    pub fn u16(&mut self, field: &'static str) -> Result<u16, StateError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// The next 32 bits.
    pub fn u32(&mut self, field: &'static str) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// The next 64 bits.
    pub fn u64(&mut self, field: &'static str) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// The next 64 bits, with a sign.
    pub fn i64(&mut self, field: &'static str) -> Result<i64, StateError> {
        Ok(i64::from_le_bytes(self.array(field)?))
    }

    /// The next truth value.
    pub fn bool(&mut self, field: &'static str) -> Result<bool, StateError> {
        Ok(self.u8_where(field, |value| value <= 1)? == 1)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], StateError> {
        let (array, left) = self.left.split_first_chunk().ok_or(StateError::Truncated { field })?;
        self.left = left;
        Ok(*array)
    }

    /// The next byte string, of at most `max` bytes.
    pub fn bytes(&mut self, field: &'static str, max: usize) -> Result<&'a [u8], StateError> {
        let len = self.u32(field)? as usize;
        if len > max {
            return Err(StateError::TooLong { field, len, max });
        }
        let (bytes, left) = self.left.split_at_checked(len).ok_or(StateError::Truncated { field })?;
        self.left = left;
        Ok(bytes)
    }

    /// Fails if bytes are left over.
    pub fn finish(self) -> Result<(), StateError> {
        if self.left.is_empty() { Ok(()) } else { Err(StateError::Trailing { bytes: self.left.len() }) }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
