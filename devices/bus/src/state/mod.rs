//! What a device saves: tagged fields, and descriptors beside them.
//!
//! A device turns its registers into the bytes of a [`SavedState`] with an [`Encoder`] and reads them back with a
//! [`Decoder`]. The file in which a machine keeps the states of its devices is [`state_file`](crate::state_file)'s.
//!
//! A saved state is only as trustworthy as those who could write to it. So whatever is read is checked in full before
//! any of it counts, no length is believed before its bytes are there, and every refusal is a value that names the
//! place.
//!
//! # A device's part
//!
//! ```
//! use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
//!
//! /// A counter that stops at a limit of its own.
//! #[derive(Debug, PartialEq)]
//! struct Counter {
//!     count: u16,
//!     limit: u16,
//!     /// Since version 2: before, no counter was ever stopped.
//!     stopped: bool,
//! }
//!
//! const KIND: &str = "org.example.counter";
//! const VERSION: u16 = 2;
//! const COUNT: Field = Field::new(1, "count");
//! const LIMIT: Field = Field::new(2, "limit");
//! const STOPPED: Field = Field::new(3, "stopped");
//!
//! impl Counter {
//!     fn save(&self) -> SavedState<'static> {
//!         let mut fields = Encoder::new(KIND, VERSION);
//!         fields.u16(COUNT, self.count).u16(LIMIT, self.limit).bool(STOPPED, self.stopped);
//!         fields.finish()
//!     }
//!
//!     // Everything is checked, then all of it is taken over.
//!     fn restore(&mut self, state: &SavedState<'_>) -> Result<(), StateError> {
//!         let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
//!         let restored = Self {
//!             count: fields.u16(COUNT)?,
//!             limit: fields.u16(LIMIT)?,
//!             stopped: fields.since(2, STOPPED, false, Decoder::bool)?,
//!         };
//!         fields.finish()?;
//!         if restored.count > restored.limit {
//!             return Err(StateError::Inconsistent { field: "count", reason: "beyond the limit" });
//!         }
//!         *self = restored;
//!         Ok(())
//!     }
//! }
//!
//! let mut counter = Counter { count: 0, limit: 0, stopped: false };
//! counter.restore(&Counter { count: 3, limit: 9, stopped: true }.save())?;
//! assert_eq!(counter, Counter { count: 3, limit: 9, stopped: true });
//!
//! // Version 1, as an older release has written it.
//! let mut old = Encoder::new(KIND, 1);
//! old.u16(COUNT, 4).u16(LIMIT, 9);
//! counter.restore(&old.finish())?;
//! assert_eq!(counter, Counter { count: 4, limit: 9, stopped: false });
//!
//! let refused = counter.restore(&Counter { count: 10, limit: 9, stopped: true }.save());
//! assert!(matches!(refused, Err(StateError::Inconsistent { field: "count", .. })));
//! # Ok::<(), StateError>(())
//! ```
//!
//! # How a kind evolves
//!
//! - A field that an older device can do without gets a tag of 0x8000 or more. Older readers skip it; the version
//!   stays.
//! - Any other new field comes with a new version. Readers give it a default for older ones
//!   ([`Decoder::since`]).
//! - A tag is never used for anything else, nor does its field ever change its meaning.
//!
//! # The payload
//!
//! Numbers are little-endian. A payload is a sequence of fields with ascending tags:
//!
//! | bytes | what |
//! |---|---|
//! | 2 | tag of the field |
//! | 4 | length of the value |
//! | as many as said | the value |
//!
//! A value is a number of its type's width, a truth value (a byte of 0 or 1), bytes, a record (a sequence of fields
//! again) or a list (records, each after its length in 4 bytes).

mod decoder;
mod encoder;
mod error;
mod field;
mod handover;
mod saved;

pub use decoder::Decoder;
pub use encoder::Encoder;
pub use error::StateError;
pub use field::Field;
pub use handover::Handover;
pub use saved::SavedState;

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
