//! Points in time, as finely as interrupts need them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const NANOS: u32 = 1_000_000_000;
/// The clock's own oscillator.
const HERTZ: i128 = 32_768;

/// A point in time, by the guest's clock or the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Moment {
    /// Seconds since 1970.
    pub(super) second: i64,
    /// Nanoseconds of this second.
    pub(super) nanos: u32,
}

impl Moment {
    pub(super) fn is_valid(nanos: u32) -> bool {
        nanos < NANOS
    }

    fn since_1970(self) -> i128 {
        i128::from(self.second) * i128::from(NANOS) + i128::from(self.nanos)
    }

    /// The same point, so many seconds later.
    pub(super) fn plus(self, seconds: i64) -> Self {
        Self { second: self.second.saturating_add(seconds), ..self }
    }

    /// How often the oscillator, divided by 2^`shift`, has ticked since 1970.
    pub(super) fn ticks(self, shift: u32) -> i128 {
        let ticks = i128::from(self.second) * HERTZ + i128::from(self.nanos) * HERTZ / i128::from(NANOS);
        ticks >> shift
    }

    /// How long until the next tick of the oscillator, divided by 2^`shift`.
    pub(super) fn until_tick(self, shift: u32) -> Duration {
        let next = (self.ticks(shift) + 1) << shift;
        // Rounded up, so that it has ticked by then.
        self.until((next * i128::from(NANOS) + HERTZ - 1).div_euclid(HERTZ))
    }

    /// How long until this second begins.
    pub(super) fn until_second(self, second: i64) -> Duration {
        self.until(i128::from(second) * i128::from(NANOS))
    }

    /// How long until so many nanoseconds since 1970; nothing if that is over.
    fn until(self, nanos: i128) -> Duration {
        Duration::from_nanos(u64::try_from((nanos - self.since_1970()).max(0)).unwrap_or(u64::MAX))
    }
}

impl From<SystemTime> for Moment {
    fn from(time: SystemTime) -> Self {
        let second = |since: Duration| i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
        match time.duration_since(UNIX_EPOCH) {
            Ok(after) => Self { second: second(after), nanos: after.subsec_nanos() },
            Err(before) => {
                let (second, nanos) = (-second(before.duration()), before.duration().subsec_nanos());
                if nanos == 0 {
                    Self { second, nanos }
                } else {
                    Self { second: second - 1, nanos: NANOS - nanos }
                }
            }
        }
    }
}
