//! The names of formats.

use std::fmt;
use std::str::FromStr;

/// The format of an image. It is named by whoever opens it, or by the image that is based on it; never guessed from
/// what the image holds, which a guest may have written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ImageFormat {
    /// The bytes of the disk, in order.
    Raw,
    /// QEMU's format with clusters that are allocated on demand.
    Qcow2,
}

impl ImageFormat {
    /// `raw` or `qcow2`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.name().fmt(f)
    }
}

/// Not the name of a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("is raw or qcow2")]
pub struct ParseImageFormatError;

impl FromStr for ImageFormat {
    type Err = ParseImageFormatError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        [Self::Raw, Self::Qcow2].into_iter().find(|format| format.name() == name).ok_or(ParseImageFormatError)
    }
}
