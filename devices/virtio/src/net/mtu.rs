//! How long packets can be.

use std::str::FromStr;

/// The bytes of a packet at most, without its Ethernet header: 68 to 65535 (5.1.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu(u16);

/// Not a number of bytes that an MTU can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an MTU is a number of bytes from 68 to 65535")]
#[non_exhaustive]
pub struct MtuError;

impl Mtu {
    /// So many bytes.
    pub fn new(bytes: u16) -> Result<Self, MtuError> {
        if bytes < 68 { Err(MtuError) } else { Ok(Self(bytes)) }
    }

    /// How many.
    pub fn bytes(self) -> u16 {
        self.0
    }
}

impl FromStr for Mtu {
    type Err = MtuError;

    fn from_str(text: &str) -> Result<Self, MtuError> {
        text.parse().map_err(|_| MtuError).and_then(Self::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_the_specification_allows() {
        assert_eq!("68".parse().map(Mtu::bytes), Ok(68));
        assert_eq!("65535".parse().map(Mtu::bytes), Ok(65535));
        for text in ["", "67", "65536", "-1", "9k"] {
            assert_eq!(text.parse::<Mtu>(), Err(MtuError), "{text:?}");
        }
    }
}
