//! The file: a header that can be read alone, then one section for each device.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use super::SavedState;

/// The first bytes of every file.
pub const MAGIC: [u8; 8] = *b"OSSATURE";
/// The version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u16 = 1;
/// Sections that a file has at most.
pub const MAX_SECTIONS: usize = 1024;
/// Bytes that one device's payload has at most.
pub const MAX_PAYLOAD: usize = 16 << 20;

/// Bytes that an id or a kind has at most.
const MAX_NAME: usize = u8::MAX as usize;

/// The guest's processor architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum Architecture {
    /// x86, 64 bits.
    X86_64 = 1,
    /// Arm, 64 bits.
    Aarch64 = 2,
}

impl fmt::Display for Architecture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::X86_64 => "x86_64",
            Self::Aarch64 => "aarch64",
        })
    }
}

/// A part of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The header.
    Header,
    /// A section, counted from 0.
    Section(usize),
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Header => f.write_str("the header"),
            Self::Section(index) => write!(f, "section {index}"),
        }
    }
}

/// Why a file cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file begins with other bytes than [`MAGIC`].
    #[error("not a saved state")]
    Magic,
    /// The format has another version.
    #[error("version {found} of the format; known is version {FORMAT_VERSION}")]
    Version {
        /// The file's version.
        found: u16,
    },
    /// No [`Architecture`] has this number.
    #[error("architecture {found} is not known")]
    UnknownArchitecture {
        /// The file's number.
        found: u16,
    },
    /// The state is of a guest on another architecture.
    #[error("a state of a guest on {found}, not on {expected}")]
    Architecture {
        /// The file's.
        found: Architecture,
        /// What would be right.
        expected: Architecture,
    },
    /// There are more sections than [`MAX_SECTIONS`].
    #[error("{found} sections, at most {MAX_SECTIONS} are possible")]
    TooMany {
        /// How many.
        found: usize,
    },
    /// The file ends too early.
    #[error("{part} ends within its {field}")]
    Truncated {
        /// Where.
        part: Part,
        /// What is not there in full.
        field: &'static str,
    },
    /// A field is longer than possible.
    #[error("the {field} of {part} has {len} bytes, at most {max} are possible")]
    TooLong {
        /// Where.
        part: Part,
        /// The field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// What would be right.
        max: usize,
    },
    /// The bytes are not those that were written.
    #[error("{part} has a wrong checksum")]
    Checksum {
        /// Which.
        part: Part,
    },
    /// A name is not UTF-8.
    #[error("the {field} of {part} is not text")]
    NotText {
        /// Where.
        part: Part,
        /// The field.
        field: &'static str,
    },
    /// Two sections have the same id.
    #[error("there are two states for the device {id:?}")]
    Duplicate {
        /// The id.
        id: String,
    },
    /// Bytes follow the last section.
    #[error("{bytes} bytes behind the last section")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

/// The beginning of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// Of the guest.
    pub architecture: Architecture,
    /// Number of sections.
    pub sections: u32,
}

impl Header {
    /// Bytes that the header takes.
    pub const LEN: usize = 20;

    /// Reads the header at the beginning of `file`, which may be all that is there of it.
    pub fn read(file: &[u8]) -> Result<Self, FormatError> {
        let part = Part::Header;
        let mut left = Bytes { left: file, part };
        if left.array("magic")? != MAGIC {
            return Err(FormatError::Magic);
        }
        let version = u16::from_le_bytes(left.array("version")?);
        let architecture = u16::from_le_bytes(left.array("architecture")?);
        let sections = u32::from_le_bytes(left.array("number of sections")?);
        let checksum = u32::from_le_bytes(left.array("checksum")?);
        // Other versions may have put their checksum elsewhere.
        if version != FORMAT_VERSION {
            return Err(FormatError::Version { found: version });
        }
        if checksum != crc32fast::hash(file.get(..Self::LEN - 4).unwrap_or_default()) {
            return Err(FormatError::Checksum { part });
        }
        let architecture = match architecture {
            1 => Architecture::X86_64,
            2 => Architecture::Aarch64,
            found => return Err(FormatError::UnknownArchitecture { found }),
        };
        if sections as usize > MAX_SECTIONS {
            return Err(FormatError::TooMany { found: sections as usize });
        }
        Ok(Self { architecture, sections })
    }
}

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
    Ok((id, SavedState { kind, version, payload: Cow::Borrowed(payload) }))
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
        for name in [*id, state.kind] {
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

/// What is left of a part of a file.
struct Bytes<'a> {
    left: &'a [u8],
    part: Part,
}

impl<'a> Bytes<'a> {
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], FormatError> {
        let truncated = FormatError::Truncated { part: self.part, field };
        let (array, left) = self.left.split_first_chunk().ok_or(truncated)?;
        self.left = left;
        Ok(*array)
    }

    fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], FormatError> {
        let truncated = FormatError::Truncated { part: self.part, field };
        let (bytes, left) = self.left.split_at_checked(len).ok_or(truncated)?;
        self.left = left;
        Ok(bytes)
    }

    /// An id or a kind: its length, then itself.
    fn name(&mut self, field: &'static str) -> Result<&'a [u8], FormatError> {
        let [len] = self.array(field)?;
        self.take(len.into(), field)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
