//! The address of a guest.

use std::fmt;
use std::str::FromStr;

/// A guest's address (context ID): what the guest and its programs call themselves. 0 to 2 are the hypervisor's, the
/// guest's own and the host's, and 4294967295 stands for any.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Cid(u32);

/// A number that is no guest's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a guest's CID is a number from 3 to 4294967294")]
pub struct CidError;

impl Cid {
    /// The address as a number.
    pub fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u64> for Cid {
    type Error = CidError;

    fn try_from(number: u64) -> Result<Self, CidError> {
        match u32::try_from(number) {
            Ok(number) if (3..u32::MAX).contains(&number) => Ok(Self(number)),
            _ => Err(CidError),
        }
    }
}

impl FromStr for Cid {
    type Err = CidError;

    fn from_str(text: &str) -> Result<Self, CidError> {
        if !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(CidError);
        }
        text.parse::<u64>().map_err(|_| CidError)?.try_into()
    }
}

impl fmt::Display for Cid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_guests_numbers_are_addresses() {
        for (text, want) in [
            ("3", Ok(3)),
            ("4294967294", Ok(u32::MAX - 1)),
            ("0", Err(CidError)),
            ("1", Err(CidError)),
            ("2", Err(CidError)),
            ("4294967295", Err(CidError)),
            ("4294967296", Err(CidError)),
            ("99999999999999999999999", Err(CidError)),
            ("+3", Err(CidError)),
            ("-3", Err(CidError)),
            ("", Err(CidError)),
        ] {
            assert_eq!(text.parse::<Cid>().map(Cid::get), want, "{text}");
        }
    }
}
