//! Limits on what a device transfers, which can be changed while it runs, and how its workers keep to them.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::state::{Decoder, Encoder, Field, StateError};
use crate::token_bucket::BucketState;
use crate::{RateLimit, Source, TimerSource, TokenBucket};

/// Who waits for tokens waits for at least so much of a bucket's refill time, so that a worker at its limit is not woken
/// for each request.
const LEAST_WAIT: u32 = 32;

const BYTES: Field = Field::new(1, "bucket of bytes");
const OPERATIONS: Field = Field::new(2, "bucket of operations");

/// What a device may transfer; without a limit, as much as it can.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct RateLimits {
    /// The bytes.
    pub bytes: Option<RateLimit>,
    /// The operations: requests of a disk, packets.
    pub operations: Option<RateLimit>,
}

impl RateLimits {
    /// Those of `bytes` and of `operations`.
    pub fn new(bytes: Option<RateLimit>, operations: Option<RateLimit>) -> Self {
        Self { bytes, operations }
    }

    fn any(&self) -> bool {
        self.bytes.is_some() || self.operations.is_some()
    }
}

/// Limits that a device keeps to, for who makes the device and who changes them while it runs. Clones are the same
/// limits: a device that has several workers, or several devices, can share them.
///
/// The device gives each of its workers a [`Throttle`], and calls [`resume`](Self::resume) when it is resumed, as at its
/// start, and [`pause`](Self::pause) when it is quiesced, as at its end.
#[derive(Clone, Debug)]
pub struct RateLimiter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// There are limits. Only a hint: whoever is limited looks under the lock.
    limited: AtomicBool,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    bytes: Option<TokenBucket>,
    operations: Option<TokenBucket>,
    paused: bool,
    /// Devices that run.
    running: usize,
    /// To be woken when the limits change.
    timers: Vec<Weak<TimerSource>>,
}

impl RateLimiter {
    /// With these limits; nothing is used up so far.
    pub fn new(limits: RateLimits) -> Self {
        let inner = Inner { bytes: None, operations: None, paused: false, running: 0, timers: Vec::new() };
        let shared = Shared { limited: AtomicBool::new(false), inner: Mutex::new(inner) };
        let new = Self(Arc::new(shared));
        new.set(limits);
        new
    }

    /// Other limits from now on. What was used of the old ones counts. Wakes workers that wait.
    pub fn set(&self, limits: RateLimits) {
        let now = Instant::now();
        let mut inner = self.0.inner();
        let paused = inner.paused;
        set(&mut inner.bytes, limits.bytes, paused, now);
        set(&mut inner.operations, limits.operations, paused, now);
        self.0.limited.store(limits.any(), Ordering::Relaxed);
        inner.timers.retain(|timer| {
            // One that cannot be set wakes at the time that was set before.
            timer.upgrade().inspect(|timer| drop(timer.set(Duration::ZERO))).is_some()
        });
    }

    /// The limits.
    pub fn limits(&self) -> RateLimits {
        let inner = self.0.inner();
        let limit = |bucket: &Option<TokenBucket>| bucket.as_ref().map(TokenBucket::limit);
        RateLimits { bytes: limit(&inner.bytes), operations: limit(&inner.operations) }
    }

    /// A device pauses. If no other one runs, the time from now on until [`resume`](Self::resume) does not count.
    pub fn pause(&self) {
        let mut inner = self.0.inner();
        inner.running = inner.running.saturating_sub(1);
        if inner.running > 0 {
            return;
        }
        inner.paused = true;
        let now = Instant::now();
        inner.buckets().into_iter().flatten().for_each(|bucket| bucket.pause(now));
    }

    /// A device runs: ends a pause, if there is one.
    pub fn resume(&self) {
        let mut inner = self.0.inner();
        inner.running += 1;
        inner.paused = false;
        let now = Instant::now();
        inner.buckets().into_iter().flatten().for_each(|bucket| bucket.resume(now));
    }

    /// What a worker keeps to the limits with.
    pub fn throttle(&self) -> io::Result<Throttle> {
        let timer = Arc::new(TimerSource::new()?);
        let mut inner = self.0.inner();
        inner.timers.retain(|timer| timer.strong_count() > 0);
        inner.timers.push(Arc::downgrade(&timer));
        drop(inner);
        Ok(Throttle { limits: Arc::clone(&self.0), timer })
    }

    /// What is to be saved: how much is used up. The limits are the host's business, and are not saved.
    pub fn state(&self) -> RateLimiterState {
        let now = Instant::now();
        let mut inner = self.0.inner();
        let [bytes, operations] =
            inner.buckets().map(|bucket| bucket.as_mut().map(|bucket| bucket.state(now)));
        RateLimiterState { bytes, operations }
    }

    /// Has as much used up as the one that was saved, within the limits of this one.
    pub fn restore(&self, state: RateLimiterState) {
        let now = Instant::now();
        let mut inner = self.0.inner();
        for (bucket, state) in inner.buckets().into_iter().zip([state.bytes, state.operations]) {
            if let (Some(bucket), Some(state)) = (bucket, state) {
                bucket.restore(state, now);
            }
        }
    }
}

fn set(bucket: &mut Option<TokenBucket>, limit: Option<RateLimit>, paused: bool, now: Instant) {
    match (bucket.as_mut(), limit) {
        (Some(bucket), Some(limit)) => bucket.set(limit, now),
        _ => {
            *bucket = limit.map(|limit| TokenBucket::new(limit, now));
            if let Some(bucket) = bucket.as_mut().filter(|_| paused) {
                bucket.pause(now);
            }
        }
    }
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn buckets(&mut self) -> [&mut Option<TokenBucket>; 2] {
        [&mut self.bytes, &mut self.operations]
    }

    /// Checks that the bucket of bytes has `bytes`, and that of operations `operations`; or how long that takes.
    fn check(&mut self, bytes: u64, operations: u64, now: Instant) -> Result<(), Duration> {
        let mut delay = None;
        for (bucket, tokens) in self.buckets().into_iter().zip([bytes, operations]) {
            let Some(bucket) = bucket else { continue };
            if let Err(missing) = bucket.check(tokens, now) {
                let least = bucket.limit().refill() / LEAST_WAIT;
                delay = delay.max(Some(missing.max(least)));
            }
        }
        delay.map_or(Ok(()), Err)
    }

    fn charge(&mut self, bytes: u64, operations: u64, now: Instant) {
        for (bucket, tokens) in self.buckets().into_iter().zip([bytes, operations]) {
            if let Some(bucket) = bucket {
                bucket.charge(tokens, now);
            }
        }
    }
}

/// How a worker keeps to the limits of a [`RateLimiter`]: it has the [source](Self::source) among its own, and asks
/// before each operation. If it is refused, it puts the operation back and sleeps: the source wakes it when it is time to
/// ask again, or when the limits have changed.
///
/// For sandboxes: timerfd_settime is called while the worker runs, timerfd_create where it is made.
#[derive(Debug)]
pub struct Throttle {
    limits: Arc<Shared>,
    timer: Arc<TimerSource>,
}

impl Throttle {
    /// What wakes the worker to ask again.
    pub fn source(&self, token: u16) -> Source {
        self.timer.source(token)
    }

    /// Takes one operation of so many bytes. Returns false if that is not allowed yet; nothing is taken then, and the
    /// source wakes when it is worth asking again.
    #[inline]
    pub fn admit(&self, bytes: u64) -> bool {
        !self.is_limited() || self.ask(bytes, true)
    }

    /// Returns true if an operation may begin whose bytes are not known before: it is to be
    /// [charged](Self::charge) afterwards. Otherwise the source wakes when it is worth asking again.
    #[inline]
    pub fn is_open(&self) -> bool {
        !self.is_limited() || self.ask(0, false)
    }

    /// Takes one operation of so many bytes that has taken place. What is too much is waited for by those that follow.
    #[inline]
    pub fn charge(&self, bytes: u64) {
        if self.is_limited() {
            self.take(bytes);
        }
    }

    #[inline]
    fn is_limited(&self) -> bool {
        self.limits.limited.load(Ordering::Relaxed)
    }

    // Out of line, so that a device without limits pays for a look.

    #[cold]
    #[inline(never)]
    fn take(&self, bytes: u64) {
        self.limits.inner().charge(bytes, 1, Instant::now());
    }

    #[cold]
    #[inline(never)]
    fn ask(&self, bytes: u64, take: bool) -> bool {
        let now = Instant::now();
        // Locked until the timer is set: who changes the limits sets it after that.
        let mut inner = self.limits.inner();
        match inner.check(bytes, 1, now) {
            // If the host cannot set a timer, nothing would wake the worker.
            Err(delay) if self.timer.set(delay).is_ok() => false,
            _ => {
                if take {
                    inner.charge(bytes, 1, now);
                }
                true
            }
        }
    }
}

/// What is saved of a [`RateLimiter`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimiterState {
    bytes: Option<BucketState>,
    operations: Option<BucketState>,
}

impl RateLimiterState {
    /// Appends its fields to a record of their own.
    pub fn save(&self, fields: &mut Encoder) {
        for (field, bucket) in [(BYTES, self.bytes), (OPERATIONS, self.operations)] {
            if let Some(bucket) = bucket {
                fields.nested(field, |fields| bucket.save(fields));
            }
        }
    }

    /// Reads the fields of such a record.
    pub fn load(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        let bucket = |fields: &mut Decoder<'_>, field| {
            fields.optional(field, |fields, field| fields.nested(field, BucketState::load))
        };
        Ok(Self { bytes: bucket(fields, BYTES)?, operations: bucket(fields, OPERATIONS)? })
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
