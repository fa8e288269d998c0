//! A token bucket: so many tokens, refilled at a constant rate; arithmetic on moments that are passed in.

use std::time::{Duration, Instant};

use crate::state::{Decoder, Encoder, Field, StateError};

/// The longest time to fill a bucket, in nanoseconds: 146 years. Products of it and of any number of tokens fit.
const LONGEST: u64 = 1 << 62;

const TOKENS: Field = Field::new(1, "tokens in a bucket");
const BURST: Field = Field::new(2, "tokens left of a burst");

/// How many tokens there are in a time: a rate, and how unevenly it may be used.
///
/// ```
/// use std::time::Duration;
/// use ossature_bus::RateLimit;
///
/// // 100 MiB a second, and at first 1 GiB more at any speed.
/// let limit = RateLimit::per_second(100 << 20).with_burst(1 << 30);
/// // 500 in any 10 seconds, at once if need be.
/// let other = RateLimit::new(500, Duration::from_secs(10));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RateLimit {
    size: u64,
    /// Nanoseconds.
    refill: u64,
    burst: u64,
}

impl RateLimit {
    /// At most `size` tokens at once, which come back evenly within `refill`. A size of 0 counts as 1, a time of 0 as a
    /// nanosecond, and a time above 146 years as so much.
    pub const fn new(size: u64, refill: Duration) -> Self {
        let nanos = refill.as_nanos();
        let refill = if nanos == 0 {
            1
        } else if nanos > LONGEST as u128 {
            LONGEST
        } else {
            nanos as u64
        };
        Self { size: if size == 0 { 1 } else { size }, refill, burst: 0 }
    }

    /// `rate` tokens a second, of which those of a tenth of a second may be used at once.
    pub const fn per_second(rate: u64) -> Self {
        let rate = if rate == 0 { 1 } else { rate };
        let size = if rate < 10 { 1 } else { rate / 10 };
        let nanos = (size as u128 * 1_000_000_000).div_ceil(rate as u128);
        Self::new(size, Duration::from_nanos(nanos as u64))
    }

    /// The same with `burst` tokens beside them, which can be used once and at any speed.
    #[must_use]
    pub const fn with_burst(mut self, burst: u64) -> Self {
        self.burst = burst;
        self
    }

    /// The tokens that may be used at once.
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The time in which an empty bucket becomes full.
    pub const fn refill(&self) -> Duration {
        Duration::from_nanos(self.refill)
    }

    /// The tokens that can be used once.
    pub const fn burst(&self) -> u64 {
        self.burst
    }

    /// What a full bucket holds, in parts of a token: a token has as many as the refill time has nanoseconds, so that
    /// each nanosecond brings `size` of them, exactly.
    fn capacity(&self) -> i128 {
        i128::from(self.size) * i128::from(self.refill)
    }
}

/// Tokens that are taken as they are needed and come back at the rate of a [`RateLimit`].
///
/// A bucket is full at first. A request for more tokens than it holds goes through when it is full, and the bucket owes
/// the rest: so any request goes through, and the rate holds.
///
/// ```
/// use std::time::{Duration, Instant};
/// use ossature_bus::{RateLimit, TokenBucket};
///
/// let now = Instant::now();
/// let mut bucket = TokenBucket::new(RateLimit::new(10, Duration::from_secs(1)), now);
/// assert_eq!(bucket.take(10, now), Ok(()));
/// assert_eq!(bucket.take(5, now), Err(Duration::from_millis(500)));
/// assert_eq!(bucket.take(5, now + Duration::from_millis(500)), Ok(()));
/// ```
#[derive(Clone, Debug)]
pub struct TokenBucket {
    limit: RateLimit,
    /// Parts of a token; less than none if some are owed.
    level: i128,
    burst: u64,
    /// Up to when the level is known.
    at: Instant,
    paused: bool,
}

impl TokenBucket {
    /// A full bucket.
    pub fn new(limit: RateLimit, now: Instant) -> Self {
        Self { limit, level: limit.capacity(), burst: limit.burst, at: now, paused: false }
    }

    /// Takes tokens, first those of the burst. If there are too few, takes none and returns in what time there will be
    /// enough, if nobody else takes any.
    pub fn take(&mut self, tokens: u64, now: Instant) -> Result<(), Duration> {
        self.check(tokens, now)?;
        self.charge(tokens, now);
        Ok(())
    }

    /// The answer of [`take`](Self::take), without taking any. For no tokens it is whether some are owed.
    pub fn check(&mut self, tokens: u64, now: Instant) -> Result<(), Duration> {
        self.fill(now);
        let rest = tokens.saturating_sub(self.burst).min(self.limit.size);
        let missing = i128::from(rest) * i128::from(self.limit.refill) - self.level;
        if tokens <= self.burst && tokens > 0 || missing <= 0 {
            return Ok(());
        }
        let nanos = missing.unsigned_abs().div_ceil(u128::from(self.limit.size));
        let (secs, nanos) = (nanos / 1_000_000_000, nanos % 1_000_000_000);
        Err(Duration::new(u64::try_from(secs).unwrap_or(u64::MAX), nanos as u32))
    }

    /// Takes tokens, whether or not there are enough: what is missing is owed.
    pub fn charge(&mut self, tokens: u64, now: Instant) {
        self.fill(now);
        let rest = tokens.saturating_sub(self.burst);
        self.burst -= tokens - rest;
        let parts = i128::from(rest) * i128::from(self.limit.refill);
        let most_owed = i128::from(u64::MAX) * i128::from(self.limit.refill);
        self.level = self.level.saturating_sub(parts).max(-most_owed);
    }

    /// Keeps to another limit from now on. Tokens that are there stay, as far as there is room, those that are owed stay
    /// owed, and the new limit's burst is there anew.
    pub fn set(&mut self, limit: RateLimit, now: Instant) {
        self.fill(now);
        let (old, new) = (i128::from(self.limit.refill), i128::from(limit.refill));
        let (tokens, parts) = (self.level.div_euclid(old), self.level.rem_euclid(old));
        self.level = (tokens * new + parts * new / old).min(limit.capacity());
        self.burst = limit.burst;
        self.limit = limit;
    }

    /// Lets no tokens come back until it is resumed.
    pub fn pause(&mut self, now: Instant) {
        self.fill(now);
        self.paused = true;
    }

    /// Ends a pause: the time of it does not count.
    pub fn resume(&mut self, now: Instant) {
        if std::mem::take(&mut self.paused) {
            self.at = now;
        }
    }

    /// What is to be saved of it.
    pub fn state(&mut self, now: Instant) -> BucketState {
        self.fill(now);
        let tokens = self.level.div_euclid(i128::from(self.limit.refill));
        let saturated = if tokens < 0 { i64::MIN } else { i64::MAX };
        BucketState { tokens: i64::try_from(tokens).unwrap_or(saturated), burst: self.burst }
    }

    /// Takes the tokens of a bucket that was saved, as far as this one's limit allows: the limit stays.
    pub fn restore(&mut self, state: BucketState, now: Instant) {
        let level = i128::from(state.tokens) * i128::from(self.limit.refill);
        self.level = level.min(self.limit.capacity());
        self.burst = state.burst.min(self.limit.burst);
        self.at = now;
    }

    /// Its limit.
    pub fn limit(&self) -> RateLimit {
        self.limit
    }

    /// Lets the tokens come back for the time that is over. A clock that goes back stands still.
    fn fill(&mut self, now: Instant) {
        let nanos = now.saturating_duration_since(self.at).as_nanos();
        if self.paused || nanos == 0 {
            return;
        }
        self.at = now;
        let parts = i128::try_from(nanos).unwrap_or(i128::MAX).saturating_mul(self.limit.size.into());
        self.level = self.level.saturating_add(parts).min(self.limit.capacity());
    }
}

/// What is saved of a [`TokenBucket`]: tokens, not the limit, which is the host's business.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketState {
    tokens: i64,
    burst: u64,
}

impl BucketState {
    /// Appends its fields to a record of their own.
    pub fn save(&self, fields: &mut Encoder) {
        fields.i64(TOKENS, self.tokens).u64(BURST, self.burst);
    }

    /// Reads the fields of such a record.
    pub fn load(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        Ok(Self { tokens: fields.i64(TOKENS)?, burst: fields.u64(BURST)? })
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
