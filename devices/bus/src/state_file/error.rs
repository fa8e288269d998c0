//! Why a file cannot be read or written.

use super::format::{Architecture, FORMAT_VERSION, MAX_SECTIONS, Part};

/// Why a file cannot be read or written.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file begins with other bytes than [`MAGIC`](super::MAGIC).
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
