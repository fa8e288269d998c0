//! The name by which a guest recognizes a disk.

use std::fmt;
use std::str::FromStr;

/// What the guest reads as the disk's serial number (`/dev/disk/by-id/virtio-…`): up to 20 printable ASCII
/// characters (virtio 1.2, section 5.2.6.2, `VIRTIO_BLK_T_GET_ID`). The default is empty.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DiskId([u8; Self::LEN]);

impl DiskId {
    /// Its length in bytes as the guest sees it, padded with zeros.
    pub const LEN: usize = 20;

    /// The bytes that the guest gets.
    pub fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }
}

/// Text that is no [`DiskId`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no disk id: up to {} letters, digits and signs, no spaces", DiskId::LEN)]
pub struct DiskIdError {
    /// The text.
    pub text: String,
}

impl FromStr for DiskId {
    type Err = DiskIdError;

    fn from_str(text: &str) -> Result<Self, DiskIdError> {
        if text.len() > Self::LEN || !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(DiskIdError { text: text.to_owned() });
        }
        let mut id = Self::default();
        for (to, from) in id.0.iter_mut().zip(text.bytes()) {
            *to = from;
        }
        Ok(id)
    }
}

impl fmt::Display for DiskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().take_while(|b| **b != 0).try_for_each(|b| write!(f, "{}", char::from(*b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_up_to_twenty_characters() {
        let id: DiskId = "root-disk_0123456789".parse().unwrap();
        assert_eq!(id.bytes(), b"root-disk_0123456789");
        assert_eq!(id.to_string(), "root-disk_0123456789");
        assert_eq!("".parse(), Ok(DiskId::default()));
    }

    #[test]
    fn refuses_what_a_guest_could_not_read_back() {
        for text in ["root-disk_01234567890", "a b", "ü", "a\0b", "a\nb"] {
            let error = text.parse::<DiskId>().unwrap_err();
            assert!(error.to_string().contains("up to 20"), "{error}");
        }
    }
}
