//! The words and limits of the format.

use std::fmt;

/// The first bytes of every file.
pub const MAGIC: [u8; 8] = *b"OSSATURE";
/// The version of the format that is written, and the only one that is read.
pub const FORMAT_VERSION: u16 = 1;
/// Sections that a file has at most.
pub const MAX_SECTIONS: usize = 1024;
/// Bytes that one device's payload has at most.
pub const MAX_PAYLOAD: usize = 16 << 20;

/// Bytes that an id or a kind has at most.
pub(super) const MAX_NAME: usize = u8::MAX as usize;

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
