//! Why a machine cannot be described by SMBIOS tables.

/// Why a machine cannot be described.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SmbiosError {
    /// A string that guests could not read.
    #[error(
        "the SMBIOS {field} has byte {byte:#04x} at position {position}; only printable ASCII is possible"
    )]
    InvalidByte {
        /// Which string.
        field: &'static str,
        /// The byte.
        byte: u8,
        /// Bytes before it.
        position: usize,
    },
    /// An OEM string without a byte would end the list of them.
    #[error("an SMBIOS OEM string is empty; give it at least one character")]
    EmptyOemString,
    /// More OEM strings than can be numbered.
    #[error("{count} SMBIOS OEM strings; at most 255 are possible")]
    TooManyOemStrings {
        /// How many there are.
        count: usize,
    },
    /// The tables do not fit where they have to be.
    #[error("the SMBIOS tables take {len} bytes; there is room for {room}: give shorter or fewer strings")]
    TooLarge {
        /// Their size in bytes.
        len: u64,
        /// Bytes that they may take.
        room: u64,
    },
}
