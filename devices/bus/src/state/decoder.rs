//! Reads a device's fields, all of which are hostile input.

use std::ops::RangeInclusive;

use super::error::StateError;
use super::field::{Field, may_be_skipped};
use super::saved::SavedState;

/// Reads a device's fields, in the order of their tags.
///
/// Fields that the reader passes by are refused, unless their tags say that they may be skipped.
#[derive(Debug)]
pub struct Decoder<'a> {
    left: &'a [u8],
    version: u16,
    /// The least tag that the next field may have.
    next: u32,
}

impl<'a> Decoder<'a> {
    /// The fields of `state`, if it is of this kind and of a version that the reader knows.
    pub fn new(
        state: &'a SavedState<'_>,
        kind: &'static str,
        versions: RangeInclusive<u16>,
    ) -> Result<Self, StateError> {
        if state.kind != kind {
            return Err(StateError::Kind { expected: kind, found: state.kind.clone().into_owned() });
        }
        if !versions.contains(&state.version) {
            return Err(StateError::Version { kind, found: state.version, known: versions });
        }
        Ok(Self { left: &state.payload, version: state.version, next: 0 })
    }

    /// Reads a byte.
    pub fn u8(&mut self, field: Field) -> Result<u8, StateError> {
        Ok(u8::from_le_bytes(self.array(field)?))
    }

    /// Reads a byte, and refuses it unless it is `allowed`.
    pub fn u8_where(&mut self, field: Field, allowed: impl FnOnce(u8) -> bool) -> Result<u8, StateError> {
        let value = self.u8(field)?;
        if allowed(value) {
            Ok(value)
        } else {
            Err(StateError::Value { field: field.name, value: value.into() })
        }
    }

    /// Reads 16 bits.
    pub fn u16(&mut self, field: Field) -> Result<u16, StateError> {
        Ok(u16::from_le_bytes(self.array(field)?))
    }

    /// Reads 32 bits.
    pub fn u32(&mut self, field: Field) -> Result<u32, StateError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// Reads 64 bits.
    pub fn u64(&mut self, field: Field) -> Result<u64, StateError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// Reads 64 bits with a sign.
    pub fn i64(&mut self, field: Field) -> Result<i64, StateError> {
        Ok(i64::from_le_bytes(self.array(field)?))
    }

    /// Reads a truth value.
    pub fn bool(&mut self, field: Field) -> Result<bool, StateError> {
        Ok(self.u8_where(field, |value| value <= 1)? == 1)
    }

    /// Reads exactly `N` bytes.
    #[inline]
    pub fn array<const N: usize>(&mut self, field: Field) -> Result<[u8; N], StateError> {
        // Nearly always, the next field is the one that is asked for, and as long as it has to be.
        let left = self.left;
        match left.split_first_chunk().and_then(|(head, rest)| Some((head, rest.split_first_chunk()?))) {
            Some((head, (value, rest))) if *head == field.head(N) && self.next <= field.tag.into() => {
                self.next = u32::from(field.tag) + 1;
                self.left = rest;
                Ok(*value)
            }
            _ => self.unusual_array(field),
        }
    }

    /// Reads at most `max` bytes.
    pub fn bytes(&mut self, field: Field, max: usize) -> Result<&'a [u8], StateError> {
        let value = self.value(field)?;
        let len = value.len();
        if len > max { Err(StateError::TooLong { field: field.name, len, max }) } else { Ok(value) }
    }

    /// Reads a record: `f` reads its fields, all of them.
    pub fn nested<T>(
        &mut self,
        field: Field,
        f: impl FnOnce(&mut Self) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let value = self.value(field)?;
        self.record(value, f)
    }

    /// Reads a list of at most `max` records, whose fields `f` reads, all of them.
    pub fn list<T>(
        &mut self,
        field: Field,
        max: usize,
        mut f: impl FnMut(&mut Self) -> Result<T, StateError>,
    ) -> Result<Vec<T>, StateError> {
        let mut left = self.value(field)?;
        let mut records = Vec::new();
        while !left.is_empty() {
            if records.len() == max {
                return Err(StateError::TooLong { field: field.name, len: max.saturating_add(1), max });
            }
            let record = sized(&mut left).ok_or(StateError::Truncated { field: field.name })?;
            records.push(self.record(record, &mut f)?);
        }
        Ok(records)
    }

    /// Reads a field with `read`, such as [`Decoder::bool`]; `None` if it is not there.
    pub fn optional<T>(
        &mut self,
        field: Field,
        read: impl FnOnce(&mut Self, Field) -> Result<T, StateError>,
    ) -> Result<Option<T>, StateError> {
        let is_there = self.seek(field)?;
        is_there.then(|| read(self, field)).transpose()
    }

    /// Reads a field that exists from `version` on with `read`, such as [`Decoder::bool`]. A state of an older version
    /// does not have it: it gets the `default`.
    pub fn since<T>(
        &mut self,
        version: u16,
        field: Field,
        default: T,
        read: impl FnOnce(&mut Self, Field) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        if self.version < version { Ok(default) } else { read(self, field) }
    }

    /// Fails if there is a field left that must not be skipped.
    pub fn finish(mut self) -> Result<(), StateError> {
        self.end()
    }

    /// An array behind fields that are skipped, or one that is refused.
    #[cold]
    fn unusual_array<const N: usize>(&mut self, field: Field) -> Result<[u8; N], StateError> {
        let value = self.value(field)?;
        let (len, max, name) = (value.len(), N, field.name);
        value.try_into().map_err(|_| match len > max {
            true => StateError::TooLong { field: name, len, max },
            false => StateError::Truncated { field: name },
        })
    }

    fn record<T>(
        &self,
        value: &'a [u8],
        f: impl FnOnce(&mut Self) -> Result<T, StateError>,
    ) -> Result<T, StateError> {
        let mut fields = Self { left: value, version: self.version, next: 0 };
        let record = f(&mut fields)?;
        fields.end().map(|()| record)
    }

    fn end(&mut self) -> Result<(), StateError> {
        while !self.left.is_empty() {
            let bytes = self.left.len();
            let skipped = self.peek().map(|tag| self.skip(tag)).transpose()?.flatten();
            if skipped.is_none() {
                return Err(StateError::Trailing { bytes });
            }
        }
        Ok(())
    }

    /// The next field's tag.
    fn peek(&self) -> Option<u16> {
        self.left.first_chunk().map(|tag| u16::from_le_bytes(*tag))
    }

    /// Skips a field that was not asked for; `None` if it is not there in full.
    fn skip(&mut self, tag: u16) -> Result<Option<()>, StateError> {
        self.check_order(tag)?;
        if !may_be_skipped(tag) {
            return Err(StateError::UnknownField { tag });
        }
        Ok(self.take().map(|_| ()))
    }

    fn check_order(&self, tag: u16) -> Result<(), StateError> {
        match self.next.checked_sub(tag.into()) {
            None | Some(0) => Ok(()),
            Some(1) => Err(StateError::Duplicate { tag }),
            Some(_) => Err(StateError::Order { tag, after: (self.next - 1) as u16 }),
        }
    }

    /// Takes the next field; `None` if it is not there in full.
    #[inline]
    fn take(&mut self) -> Option<&'a [u8]> {
        let (tag, mut left) = self.left.split_first_chunk()?;
        let value = sized(&mut left)?;
        self.next = u32::from(u16::from_le_bytes(*tag)) + 1;
        self.left = left;
        Some(value)
    }

    /// Goes to a field, and returns true if it is there.
    fn seek(&mut self, field: Field) -> Result<bool, StateError> {
        while !self.left.is_empty() {
            let truncated = || StateError::Truncated { field: field.name };
            let tag = self.peek().ok_or_else(truncated)?;
            if tag >= field.tag {
                self.check_order(tag)?;
                return Ok(tag == field.tag);
            }
            self.skip(tag)?.ok_or_else(truncated)?;
        }
        Ok(false)
    }

    #[inline]
    fn value(&mut self, field: Field) -> Result<&'a [u8], StateError> {
        let is_next = self.peek() == Some(field.tag) && self.next <= field.tag.into();
        if !is_next && !self.seek(field)? {
            return Err(StateError::Missing { field: field.name });
        }
        self.take().ok_or(StateError::Truncated { field: field.name })
    }
}

/// Takes bytes after their length; `None` if they are not there in full.
#[inline]
fn sized<'a>(left: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (len, rest) = left.split_first_chunk()?;
    let (value, rest) = rest.split_at_checked(u32::from_le_bytes(*len) as usize)?;
    *left = rest;
    Some(value)
}
