//! The header, which can be read alone.

use super::bytes::Bytes;
use super::error::FormatError;
use super::format::{Architecture, FORMAT_VERSION, MAGIC, MAX_SECTIONS, Part};

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
