//! The entropy device (virtio 1.2, 5.4).

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, RateLimiter, Syscall, Throttle};

use crate::{
    Activation, Chain, DeviceInfo, DeviceType, LocalDevice, QueueBroken, Removed, Source, Turn, VirtQueue,
    Worker,
};

/// The most that one request is given, in bytes: a driver that wants more asks again.
const MAX_REQUEST: u32 = 64 << 10;
/// Bytes that are drawn at once.
const PIECE: usize = 4096;
/// Requests in one turn.
const BUDGET: usize = 64;

/// What wakes the worker when there is more to give.
const TIMER: u16 = 1;

/// An entropy source that is fed by the host's getrandom(2).
///
/// Requests of more than 64 KiB are given 64 KiB. How many requests and bytes a second there are can be
/// [limited](Self::with_limits): requests beyond that wait in the guest's queue.
#[derive(Debug, Default)]
pub struct Rng {
    bytes: Arc<AtomicU64>,
    stalls: Arc<AtomicU64>,
    limits: Option<RateLimiter>,
}

impl Rng {
    /// A new one.
    pub fn new() -> Self {
        Self::default()
    }

    /// The same within these limits. They are not part of its saved state: a restored one begins with full buckets.
    ///
    /// ```
    /// use ossature_bus::{RateLimit, RateLimiter, RateLimits};
    /// use ossature_virtio::Rng;
    ///
    /// let limiter = RateLimiter::new(RateLimits::new(Some(RateLimit::per_second(64 << 10)), None));
    /// let rng = Rng::new().with_limits(limiter.clone());
    /// // Later, while the guest runs: no limits any more.
    /// limiter.set(RateLimits::default());
    /// ```
    #[must_use]
    pub fn with_limits(mut self, limits: RateLimiter) -> Self {
        self.limits = Some(limits);
        self
    }
}

impl LocalDevice for Rng {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::ENTROPY, &[256])
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![0]]
    }

    fn read_config(&self, _: u32, _: &mut [u8]) {}

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn worker(&mut self, _: usize, _: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let throttle = self.limits.as_ref().map(RateLimiter::throttle).transpose();
        let throttle = throttle.map_err(|e| DeviceError::new("no timer for the limits").with_source(e))?;
        let (bytes, stalls) = (self.bytes.clone(), self.stalls.clone());
        Ok(Box::new(RngWorker { queue: None, bytes, stalls, throttle, piece: Box::new([0; PIECE]) }))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.limits.iter().for_each(RateLimiter::pause);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.limits.iter().for_each(RateLimiter::resume);
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "an entropy source has no state" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("getrandom"), Syscall("timerfd_create"), Syscall("timerfd_settime"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter(
            "entropy_bytes",
            "Random bytes that the guest was given.",
            self.bytes.load(Ordering::Relaxed),
        );
        visitor.counter(
            "limit_stalls",
            "Times that a request had to wait for the limits.",
            self.stalls.load(Ordering::Relaxed),
        );
    }
}

struct RngWorker {
    queue: Option<VirtQueue>,
    bytes: Arc<AtomicU64>,
    stalls: Arc<AtomicU64>,
    throttle: Option<Throttle>,
    piece: Box<[u8; PIECE]>,
}

/// Fills the writable part of `chain`; returns how many bytes of it.
fn fill(queue: &VirtQueue, piece: &mut [u8; PIECE], chain: &Chain) -> u32 {
    let mut written = 0;
    for segment in chain.writable() {
        let mut at = segment.addr;
        let mut left = segment.len.min(MAX_REQUEST - written);
        while left > 0 {
            let Some(piece) = piece.get_mut(..(left as usize).min(PIECE)) else { return written };
            // A driver that gets nothing asks again.
            if getrandom::fill(piece).is_err() || queue.dma().write(at, piece).is_err() {
                return written;
            }
            let done = piece.len() as u32;
            at.0 += u64::from(done);
            left -= done;
            written += done;
        }
    }
    written
}

impl Worker for RngWorker {
    fn sources(&self) -> Vec<Source> {
        self.throttle.iter().map(|throttle| throttle.source(TIMER)).collect()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.queue = Some(queue);
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        self.queue.take().into()
    }

    fn turn(&mut self, _: u16) -> Result<Turn, QueueBroken> {
        let Some(queue) = &mut self.queue else { return Ok(Turn::Sleep) };
        for _ in 0..BUDGET {
            let Some(chain) = queue.pop()? else {
                queue.flush()?;
                return Ok(if queue.enable_kicks()? { Turn::Again } else { Turn::Sleep });
            };
            let wanted = chain.writable_len().min(MAX_REQUEST).into();
            if self.throttle.as_ref().is_some_and(|throttle| !throttle.admit(wanted)) {
                queue.unpop(chain);
                queue.flush()?;
                self.stalls.fetch_add(1, Ordering::Relaxed);
                return Ok(Turn::Sleep);
            }
            let written = fill(queue, &mut self.piece, &chain);
            queue.complete(chain, written)?;
            self.bytes.fetch_add(written.into(), Ordering::Relaxed);
        }
        queue.flush()?;
        Ok(Turn::Again)
    }
}
