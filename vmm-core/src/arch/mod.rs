//! What differs between processor architectures. Each has the same names for the rest of the crate.

use std::time::{SystemTime, UNIX_EPOCH};

use ossature_bus::state::StateError;

#[cfg(target_arch = "aarch64")]
mod aarch64;
#[cfg(target_arch = "aarch64")]
pub(crate) use aarch64::*;

#[cfg(target_arch = "x86_64")]
mod x86_64;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86_64::*;

pub(crate) mod linux;
pub use linux::Linux;

/// The host's wall clock, in nanoseconds since 1970.
fn wall_clock() -> Option<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since.as_nanos()).ok()
}

/// Divides a field of a state into numbers.
fn pieces<T, const N: usize>(
    bytes: &[u8],
    field: &'static str,
    number: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, StateError> {
    let pieces = bytes.chunks(N).map(|piece| piece.try_into().map(&number));
    pieces.collect::<Result<_, _>>().map_err(|_| StateError::Truncated { field })
}
