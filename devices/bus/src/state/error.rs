//! Why a device refuses a state.

use std::ops::RangeInclusive;

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
    #[error("version {found} of {kind}; known are the versions {} to {}", known.start(), known.end())]
    Version {
        /// The device's kind.
        kind: &'static str,
        /// The state's version.
        found: u16,
        /// The versions that would be right.
        known: RangeInclusive<u16>,
    },
    /// The payload ends too early, or the field has fewer bytes than its type.
    #[error("the payload ends within the field {field}")]
    Truncated {
        /// The field that is not there in full.
        field: &'static str,
    },
    /// Bytes follow the last field or record.
    #[error("{bytes} bytes behind the last field")]
    Trailing {
        /// The number of bytes.
        bytes: usize,
    },
    /// A field has more bytes, or records, than the device ever gives it.
    #[error("the field {field} has the length {len}, at most {max} is possible")]
    TooLong {
        /// The field.
        field: &'static str,
        /// Its length.
        len: usize,
        /// The greatest length that would be right.
        max: usize,
    },
    /// A field is not there.
    #[error("the field {field} is missing")]
    Missing {
        /// The field.
        field: &'static str,
    },
    /// A field is there twice.
    #[error("the field {tag:#x} is there twice")]
    Duplicate {
        /// Its tag.
        tag: u16,
    },
    /// A field follows one with a greater tag.
    #[error("the field {tag:#x} follows the field {after:#x}")]
    Order {
        /// Its tag.
        tag: u16,
        /// The tag of the field before it.
        after: u16,
    },
    /// A field is not known here, and must not be skipped.
    #[error("the field {tag:#x} is not known")]
    UnknownField {
        /// Its tag.
        tag: u16,
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
