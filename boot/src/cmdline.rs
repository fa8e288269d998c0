//! The kernel command line: what a kernel accepts.

/// Why a command line is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum CmdlineError {
    /// Longer than the kernel's own limit.
    #[error("the command line has {len} bytes; this kernel takes at most {limit}")]
    TooLong {
        /// Its length in bytes.
        len: usize,
        /// The kernel's limit, without the NUL.
        limit: usize,
    },
    /// Longer than the kernel's own limit with what the machine adds.
    #[error(
        "the command line has {len} bytes with `{added}`, which the machine adds; this kernel takes at most {limit}"
    )]
    TooLongCompleted {
        /// Its length in bytes, with what the machine adds.
        len: usize,
        /// The words that the machine adds.
        added: String,
        /// The kernel's limit, without the NUL.
        limit: usize,
    },
    /// A byte that would end or garble it.
    #[error("the command line has byte {byte:#04x} at position {position}; only printable ASCII is possible")]
    InvalidByte {
        /// The byte.
        byte: u8,
        /// Bytes before it.
        position: usize,
    },
}

/// Checks `cmdline` against a kernel that takes `limit` bytes.
pub(crate) fn check(cmdline: &str, limit: usize) -> Result<(), CmdlineError> {
    if cmdline.len() > limit {
        return Err(CmdlineError::TooLong { len: cmdline.len(), limit });
    }
    match cmdline.bytes().enumerate().find(|(_, byte)| !matches!(byte, b' '..=b'~')) {
        Some((position, byte)) => Err(CmdlineError::InvalidByte { byte, position }),
        None => Ok(()),
    }
}
