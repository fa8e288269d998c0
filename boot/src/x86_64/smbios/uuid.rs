//! The UUID of a machine.

use std::fmt;
use std::str::FromStr;

/// A UUID (RFC 9562), by its bytes in the order in which it is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

/// Text that is not a UUID.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give 32 hexadecimal digits in groups of 8-4-4-4-12, such as 123e4567-e89b-12d3-a456-426614174000")]
pub struct InvalidUuid;

impl Uuid {
    /// All zeros, which means none.
    pub const NIL: Self = Self([0; 16]);

    /// As SMBIOS has it: the first three groups are little-endian numbers (DSP0134, 7.2.1).
    pub(super) fn on_the_wire(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h, rest @ ..] = self.0;
        let [i, j, k, l, m, n, o, p] = rest;
        [d, c, b, a, f, e, h, g, i, j, k, l, m, n, o, p]
    }
}

impl FromStr for Uuid {
    type Err = InvalidUuid;

    fn from_str(text: &str) -> Result<Self, InvalidUuid> {
        let groups = text.split('-').map(str::len);
        if !groups.eq([8, 4, 4, 4, 12]) {
            return Err(InvalidUuid);
        }
        let mut digits = text.chars().filter(|&digit| digit != '-').map(|digit| digit.to_digit(16));
        let mut bytes = [0; 16];
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else {
                return Err(InvalidUuid);
            };
            *byte = (high << 4 | low) as u8;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, byte) in self.0.iter().enumerate() {
            let dash = if matches!(index, 4 | 6 | 8 | 10) { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}
