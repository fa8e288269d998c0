//! What devices save, and the file in which a machine keeps it.
//!
//! A device turns its registers into the bytes of a [`SavedState`] with an [`Encoder`] and reads them back with a
//! [`Decoder`]. [`write()`] puts the states of a machine's devices into one file, each under its device's id, and
//! [`StateFile::parse`] takes them out again. All of this works on bytes in memory: where they are kept, the caller
//! decides.
//!
//! A saved state is as trustworthy as whoever could write to it. So whatever is read is checked in full before any of
//! it counts, no length is believed before its bytes are there, and every refusal is a value that names the place.
//!
//! # A device's part
//!
//! ```
//! use ossature_bus::state::{Decoder, Encoder, SavedState, StateError};
//!
//! /// A counter that stops at a limit of its own.
//! #[derive(Debug, PartialEq)]
//! struct Counter {
//!     count: u16,
//!     limit: u16,
//! }
//!
//! impl Counter {
//!     const KIND: &str = "org.example.counter";
//!     const VERSION: u16 = 1;
//!
//!     // What `Device::state` wraps in `State::Saved`.
//!     fn save(&self) -> SavedState<'static> {
//!         let mut fields = Encoder::new(Self::KIND, Self::VERSION);
//!         fields.u16(self.count).u16(self.limit);
//!         fields.finish()
//!     }
//!
//!     // `Device::restore`: everything is checked, then all of it is taken over.
//!     fn restore(&mut self, state: &SavedState<'_>) -> Result<(), StateError> {
//!         let mut fields = Decoder::new(state, Self::KIND, Self::VERSION)?;
//!         let restored = Self { count: fields.u16("count")?, limit: fields.u16("limit")? };
//!         fields.finish()?;
//!         if restored.count > restored.limit {
//!             return Err(StateError::Inconsistent { field: "count", reason: "beyond the limit" });
//!         }
//!         *self = restored;
//!         Ok(())
//!     }
//! }
//!
//! let mut counter = Counter { count: 0, limit: 0 };
//! counter.restore(&Counter { count: 3, limit: 9 }.save())?;
//! assert_eq!(counter, Counter { count: 3, limit: 9 });
//!
//! let refused = counter.restore(&Counter { count: 10, limit: 9 }.save());
//! assert!(matches!(refused, Err(StateError::Inconsistent { field: "count", .. })));
//! assert_eq!(counter, Counter { count: 3, limit: 9 });
//! # Ok::<(), StateError>(())
//! ```
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
//! use ossature_bus::state::{self, Architecture, Encoder, StateFile};
//!
//! let mut fields = Encoder::new("org.example.counter", 1);
//! fields.u16(3).u16(9);
//! let saved = fields.finish();
//!
//! let mut file = Vec::new();
//! state::write(&mut file, Architecture::X86_64, &[("counter0", &saved)])?;
//!
//! let parsed = StateFile::parse(&file, Architecture::X86_64)?;
//! assert_eq!(parsed.get("counter0"), Some(&saved));
//! assert!(StateFile::parse(&file[..file.len() - 1], Architecture::X86_64).is_err());
//! # Ok::<(), ossature_bus::state::FormatError>(())
//! ```

mod fields;
mod file;

use std::borrow::Cow;

pub use fields::{Decoder, Encoder};
pub use file::{
    Architecture, FORMAT_VERSION, FormatError, Header, MAGIC, MAX_PAYLOAD, MAX_SECTIONS, Part, StateFile,
    write,
};

/// The state of one device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedState<'a> {
    /// What kind of device it is of: a name that its maker keeps unique and never gives another meaning.
    pub kind: &'a str,
    /// Version of the payload, counted by the maker of the kind.
    pub version: u16,
    /// The device's fields, as an [`Encoder`] writes them.
    pub payload: Cow<'a, [u8]>,
}

/// Why a device refused a state. The device is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The device takes none.
    #[error("the device takes no saved state: {reason}")]
    Unsupported {
        /// Why.
        reason: &'static str,
    },
    /// The state is of another kind of device.
    #[error("a state of the kind {found:?}, and the device is of the kind {expected:?}")]
    Kind {
        /// The device's.
        expected: &'static str,
        /// The state's.
        found: String,
    },
    /// The payload's version is not known here.
    #[error("version {found} of {kind}; known is version {known}")]
    Version {
        /// The device's kind.
        kind: &'static str,
        /// The state's version.
        found: u16,
        /// The version that would be right.
        known: u16,
    },
    /// The payload ends too early.
    #[error("the payload ends within the field {field}")]
    Truncated {
        /// The field that is not there in full.
        field: &'static str,
    },
    /// Bytes follow the last field.
    #[error("{bytes} bytes behind the last field")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A field has more bytes than the device ever holds.
    #[error("the field {field} has {len} bytes, at most {max} are possible")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// What would be right.
        max: usize,
    },
    /// A field has a value that the device never gives it.
    #[error("the field {field} cannot be {value:#x}")]
    Value {
        /// The field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Fields contradict each other.
    #[error("the field {field} does not fit the others: {reason}")]
    Inconsistent {
        /// The field that shows it.
        field: &'static str,
        /// What is wrong.
        reason: &'static str,
    },
}
