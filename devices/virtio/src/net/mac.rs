//! Ethernet addresses.

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::str::FromStr;

/// The Ethernet address of one network card: never a group address, never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

/// Bit 0 of the first byte: a group address.
const GROUP: u8 = 1;
/// Bit 1 of the first byte: assigned by whoever runs the network, not by a manufacturer.
const LOCAL: u8 = 2;

impl Mac {
    /// The address with these bytes. Fails if no card can have it.
    pub fn new(bytes: [u8; 6]) -> Result<Self, MacError> {
        let mac = Self(bytes);
        if bytes == [0; 6] {
            return Err(MacError::Zero);
        }
        if bytes[0] & GROUP != 0 {
            return Err(MacError::Group { address: mac.to_string() });
        }
        Ok(mac)
    }

    /// A locally administered address that depends on `name` only, such as the name of the tap: a machine
    /// that is started again keeps its address.
    pub fn derived(name: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        name.hash(&mut hasher);
        let [_, _, a, b, c, d, e, f] = hasher.finish().to_be_bytes();
        Self([(a | LOCAL) & !GROUP, b, c, d, e, f])
    }

    /// Its bytes, first on the wire first.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

/// Text or bytes that are no network card's address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MacError {
    /// Not six pairs of hexadecimal digits with colons between them.
    #[error("{text:?} is no MAC address; it looks like 52:54:00:12:34:56")]
    Syntax {
        /// The text.
        text: String,
    },
    /// The address of a group.
    #[error("{address} is a group address; the first byte of a card's address is even")]
    Group {
        /// The address.
        address: String,
    },
    /// All zeros.
    #[error("a card's address is not all zeros")]
    Zero,
}

impl FromStr for Mac {
    type Err = MacError;

    fn from_str(text: &str) -> Result<Self, MacError> {
        let syntax = || MacError::Syntax { text: text.to_owned() };
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *byte = part.and_then(|p| u8::from_str_radix(p, 16).ok()).ok_or_else(syntax)?;
        }
        if parts.next().is_some() {
            return Err(syntax());
        }
        Self::new(bytes)
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, f] = self.0;
        write!(out, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_it_prints() {
        let mac: Mac = "52:54:00:AB:cd:0f".parse().unwrap();
        assert_eq!(mac.bytes(), [0x52, 0x54, 0, 0xab, 0xcd, 0x0f]);
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:0f");
    }

    #[test]
    fn refuses_bad_text_and_names_it() {
        for text in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "52-54-00-12-34-56",
            "52:54:0:12:34:56",
            "+2:54:00:12:34:56",
        ] {
            let error = text.parse::<Mac>().unwrap_err();
            assert_eq!(error, MacError::Syntax { text: text.to_owned() });
        }
    }

    #[test]
    fn refuses_addresses_no_card_has() {
        let error = "01:00:5e:00:00:01".parse::<Mac>().unwrap_err();
        assert_eq!(
            error.to_string(),
            "01:00:5e:00:00:01 is a group address; the first byte of a card's address is even"
        );
        assert_eq!("00:00:00:00:00:00".parse::<Mac>(), Err(MacError::Zero));
        assert!("ff:ff:ff:ff:ff:ff".parse::<Mac>().is_err());
    }

    #[test]
    fn derives_stable_local_addresses() {
        for i in 0..100 {
            let mac = Mac::derived(&format!("tap{i}"));
            assert_eq!(mac, Mac::derived(&format!("tap{i}")));
            assert_ne!(mac, Mac::derived(&format!("tap{}", i + 1)));
            assert_eq!(mac.bytes()[0] & 3, 2, "{mac} is local and not a group");
        }
    }
}
