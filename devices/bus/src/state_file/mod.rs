//! The file in which a machine keeps the states of its devices.
//!
//! [`write()`] puts the states into one file, each under its device's id, and [`StateFile::parse`] takes them out again.
//! All of this works on bytes in memory: where they are kept, the caller decides. What is read is hostile input.
//!
//! # The file
//!
//! Numbers are little-endian; a checksum is the CRC-32 of IEEE 802.3. A header of [`Header::LEN`] bytes, which says
//! what the file is without the rest of it:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`] |
//! | 8 | 2 | version of the format, [`FORMAT_VERSION`] |
//! | 10 | 2 | [`Architecture`] |
//! | 12 | 4 | number of sections, at most [`MAX_SECTIONS`] |
//! | 16 | 4 | checksum of the bytes before it |
//!
//! Then the sections, one after the other, and nothing behind the last one:
//!
//! | bytes | what |
//! |---|---|
//! | 1, then as many | the device's id, UTF-8, after its length |
//! | 1, then as many | the kind of the state, UTF-8, after its length |
//! | 2 | version of the state |
//! | 4 | length of the payload, at most [`MAX_PAYLOAD`] |
//! | 4 | checksum of all of the section but itself |
//! | as many as said | the payload |
//!
//! ```
//! use ossature_bus::state::{Encoder, Field};
//! use ossature_bus::state_file::{self, Architecture, StateFile};
//!
//! let mut fields = Encoder::new("org.example.counter", 1);
//! fields.u16(Field::new(1, "count"), 3);
//! let saved = fields.finish();
//!
//! let mut file = Vec::new();
//! state_file::write(&mut file, Architecture::X86_64, &[("counter0", &saved)])?;
//!
//! let parsed = StateFile::parse(&file, Architecture::X86_64)?;
//! assert_eq!(parsed.get("counter0"), Some(&saved));
//! assert!(StateFile::parse(&file[..file.len() - 1], Architecture::X86_64).is_err());
//! # Ok::<(), ossature_bus::state_file::FormatError>(())
//! ```

mod bytes;
mod error;
mod format;
mod header;
mod reserved;

use std::collections::{BTreeMap, BTreeSet};

use crate::state::SavedState;
use bytes::Bytes;
use format::MAX_NAME;

pub use error::FormatError;
pub use format::{Architecture, FORMAT_VERSION, MAGIC, MAX_PAYLOAD, MAX_SECTIONS, Part};
pub use header::Header;
pub use reserved::is_reserved_id;

/// The devices' states in a file, checked in full.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateFile<'a> {
    sections: BTreeMap<&'a str, SavedState<'a>>,
}

impl<'a> StateFile<'a> {
    /// Reads all of `file`, the state of a guest on `architecture`. What it keeps lies in `file`.
    pub fn parse(file: &'a [u8], architecture: Architecture) -> Result<Self, FormatError> {
        let header = Header::read(file)?;
        if header.architecture != architecture {
            return Err(FormatError::Architecture { found: header.architecture, expected: architecture });
        }
        let mut left = file.get(Header::LEN..).unwrap_or_default();
        let mut sections = BTreeMap::new();
        for index in 0..header.sections as usize {
            let (id, state) = section(&mut left, Part::Section(index))?;
            if sections.insert(id, state).is_some() {
                return Err(FormatError::Duplicate { id: id.to_owned() });
            }
        }
        if left.is_empty() { Ok(Self { sections }) } else { Err(FormatError::Trailing { bytes: left.len() }) }
    }

    /// The state of the device `id`.
    pub fn get(&self, id: &str) -> Option<&SavedState<'a>> {
        self.sections.get(id)
    }

    /// All states with their devices' ids, in the order of the ids.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&'a str, &SavedState<'a>)> {
        self.sections.iter().map(|(id, state)| (*id, state))
    }
}

fn section<'a>(file: &mut &'a [u8], part: Part) -> Result<(&'a str, SavedState<'a>), FormatError> {
    let start = *file;
    let mut left = Bytes { left: start, part };
    let id = left.name("id")?;
    let kind = left.name("kind")?;
    let version = u16::from_le_bytes(left.array("version")?);
    let len = u32::from_le_bytes(left.array("length")?) as usize;
    let head = start.get(..start.len() - left.left.len()).unwrap_or_default();
    let checksum = u32::from_le_bytes(left.array("checksum")?);
    if len > MAX_PAYLOAD {
        return Err(FormatError::TooLong { part, field: "payload", len, max: MAX_PAYLOAD });
    }
    let payload = left.take(len, "payload")?;
    if checksum != section_checksum(head, payload) {
        return Err(FormatError::Checksum { part });
    }
    let text = |bytes, field| std::str::from_utf8(bytes).map_err(|_| FormatError::NotText { part, field });
    let (id, kind) = (text(id, "id")?, text(kind, "kind")?);
    *file = left.left;
    Ok((id, SavedState::new(kind, version, payload)))
}

fn section_checksum(head: &[u8], payload: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(head);
    hasher.update(payload);
    hasher.finalize()
}

/// Appends to `out` a file with the states of a guest's devices, each with its device's id. What
/// [`StateFile::parse`] would refuse is refused here too, and `out` is left as it was.
pub fn write(
    out: &mut Vec<u8>,
    architecture: Architecture,
    sections: &[(&str, &SavedState<'_>)],
) -> Result<(), FormatError> {
    if sections.len() > MAX_SECTIONS {
        return Err(FormatError::TooMany { found: sections.len() });
    }
    let mut ids = BTreeSet::new();
    for (index, (id, state)) in sections.iter().enumerate() {
        let part = Part::Section(index);
        for (field, len, max) in [
            ("id", id.len(), MAX_NAME),
            ("kind", state.kind.len(), MAX_NAME),
            ("payload", state.payload.len(), MAX_PAYLOAD),
        ] {
            if len > max {
                return Err(FormatError::TooLong { part, field, len, max });
            }
        }
        if !ids.insert(id) {
            return Err(FormatError::Duplicate { id: (*id).to_owned() });
        }
    }

    // All lengths have been found to fit.
    let start = out.len();
    out.extend(MAGIC);
    out.extend(FORMAT_VERSION.to_le_bytes());
    out.extend((architecture as u16).to_le_bytes());
    out.extend((sections.len() as u32).to_le_bytes());
    out.extend(crc32fast::hash(out.get(start..).unwrap_or_default()).to_le_bytes());
    for (id, state) in sections {
        let start = out.len();
        for name in [*id, &*state.kind] {
            out.push(name.len() as u8);
            out.extend_from_slice(name.as_bytes());
        }
        out.extend(state.version.to_le_bytes());
        out.extend((state.payload.len() as u32).to_le_bytes());
        let checksum = section_checksum(out.get(start..).unwrap_or_default(), &state.payload);
        out.extend(checksum.to_le_bytes());
        out.extend_from_slice(&state.payload);
    }
    Ok(())
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
