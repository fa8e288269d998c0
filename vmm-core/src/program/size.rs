//! Sizes on a command line.

/// What is not a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("give a number of bytes, or a number with K, M or G, such as 512M")]
#[non_exhaustive]
pub struct SizeError;

/// The number of bytes that `text` says: a number, or a number of binary units, with K, M or G.
///
/// ```
/// use ossature_core::program::parse_size;
///
/// assert_eq!(parse_size("512M"), Ok(512 << 20));
/// assert_eq!(parse_size("4096"), Ok(4096));
/// assert!(parse_size("512 MB").is_err());
/// ```
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let units = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30)];
    let unit = units.into_iter().find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)));
    let (digits, unit) = unit.unwrap_or((text, 1_u64));
    digits.parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or(SizeError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_a_unit_or_none_and_fit() {
        let cases = [("0", 0), ("1", 1), ("3K", 3 << 10), ("16M", 16 << 20), ("2G", 2 << 30)];
        for (text, bytes) in cases.into_iter().chain([("17179869183G", u64::MAX - (1 << 30) + 1)]) {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "M", "1T", "1k", "1MM", "-1", "1.5G", " 1", "1 M", "0x10", "17179869184G"] {
            assert_eq!(parse_size(text), Err(SizeError), "{text:?}");
        }
    }
}
