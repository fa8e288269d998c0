//! Rates on a command line.

use ossature_bus::RateLimit;

use super::parse_size;

/// What is not a rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "give how many a second, such as 2000/s or 100M/s, and after a + how many once at any speed: 100M/s+1G"
)]
#[non_exhaustive]
pub struct RateError;

/// The limit that `text` says: `100M/s`, a number a second as [`parse_size`] knows it, at least one. `100M/s+1G` has a
/// burst beside it, which can be used once and at any speed.
///
/// ```
/// use ossature_bus::RateLimit;
/// use ossature_core::program::{KeyValues, parse_rate};
///
/// assert_eq!(parse_rate("2000/s"), Ok(RateLimit::per_second(2000)));
/// let keys = KeyValues::parse("path=a.img,limit=100M/s+1G".as_ref(), &["path=FILE", "limit=RATE"])?;
/// let limit = RateLimit::per_second(100 << 20).with_burst(1 << 30);
/// assert_eq!(keys.parsed_by("limit", parse_rate)?, Some(limit));
/// # Ok::<(), ossature_core::program::KeyValueError>(())
/// ```
pub fn parse_rate(text: &str) -> Result<RateLimit, RateError> {
    let (rate, burst) = match text.split_once('+') {
        Some((rate, burst)) => (rate, parse_size(burst).map_err(|_| RateError)?),
        None => (text, 0),
    };
    let rate = rate.strip_suffix("/s").and_then(|rate| parse_size(rate).ok()).filter(|rate| *rate > 0);
    rate.map(|rate| RateLimit::per_second(rate).with_burst(burst)).ok_or(RateError)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_a_second_and_may_have_a_burst() {
        let cases = [("1/s", 1, 0), ("100M/s", 100 << 20, 0), ("3K/s+0", 3 << 10, 0), ("7/s+2G", 7, 2 << 30)];
        for (text, rate, burst) in cases {
            assert_eq!(parse_rate(text), Ok(RateLimit::per_second(rate).with_burst(burst)), "{text}");
        }
        let wrong = [
            "", "/s", "0/s", "100M", "100M/m", "1/s+", "1/s+1/s", "+1/s", "1G+1/s", "-1/s", "1 /s", "1/s+1+1",
        ];
        for text in wrong {
            assert_eq!(parse_rate(text), Err(RateError), "{text:?}");
        }
    }
}
