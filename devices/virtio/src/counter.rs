//! Counters that one worker writes and anybody reads.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::{DeviceEvent, EventSink};

/// A number that only grows. With one writer no read-modify-write instruction is needed.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`. Only one thread at a time may call it.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get().wrapping_add(n), Ordering::Relaxed);
    }

    /// The number by now.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// So many different failures are reported until the next reset.
const MAX_REPORTS: usize = 8;
/// A reset counts for that only so long after the last report: guests reset devices as often as they like.
const REPORT_AGAIN: Duration = Duration::from_secs(60);

/// The host's failures: all are counted, and each is reported that was not yet since the last reset.
#[derive(Debug, Default)]
pub(crate) struct HostErrors {
    count: Counter,
    reported: Mutex<Reported>,
}

#[derive(Debug, Default)]
struct Reported {
    reasons: Vec<String>,
    last: Option<Instant>,
    /// The device was reset since the last report.
    reset: bool,
}

impl Reported {
    /// Returns true if this is to be reported.
    fn takes(&mut self, reason: &str, now: Instant) -> bool {
        let is_old = self.last.is_none_or(|last| now.saturating_duration_since(last) >= REPORT_AGAIN);
        if self.reset && is_old {
            self.reasons.clear();
        }
        let is_new = self.reasons.len() < MAX_REPORTS && !self.reasons.iter().any(|known| known == reason);
        if is_new {
            (self.last, self.reset) = (Some(now), false);
            self.reasons.push(reason.to_owned());
        }
        is_new
    }
}

impl HostErrors {
    /// Notes that `action` failed.
    pub(crate) fn note(&self, events: &EventSink, action: &str, error: &impl Display) {
        let reported = self.reported();
        // One thread at a time, by the lock.
        self.count.add(1);
        Self::report(reported, events, format!("cannot {action}: {error}"));
    }

    /// Counts a failure that is reported elsewhere.
    pub(crate) fn count(&self) {
        let _one_at_a_time = self.reported();
        self.count.add(1);
    }

    /// Reports what was noticed of the host and has not made anything fail.
    pub(crate) fn tell(&self, events: &EventSink, reason: String) {
        Self::report(self.reported(), events, reason);
    }

    fn report(mut reported: MutexGuard<'_, Reported>, events: &EventSink, reason: String) {
        let is_new = reported.takes(&reason, Instant::now());
        drop(reported);
        if is_new {
            events.report(DeviceEvent::HostError { reason });
        }
    }

    fn reported(&self) -> MutexGuard<'_, Reported> {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.count.get()
    }

    /// Each is reported again, if the last report is long ago.
    pub(crate) fn reset(&self) {
        self.reported().reset = true;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn e4_each_condition_is_reported_once_and_no_more_than_a_few() {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        let events = EventSink::new(move |event| sink.lock().unwrap().push(event.to_string()));
        let errors = HostErrors::default();
        for _ in 0..3 {
            errors.note(&events, "write", &"the disk is full");
            errors.note(&events, "flush", &"the disk is full");
        }
        assert_eq!(
            *told.lock().unwrap(),
            ["cannot write: the disk is full", "cannot flush: the disk is full"]
        );
        for number in 0..100 {
            errors.note(&events, "read", &format!("sector {number}"));
        }
        assert_eq!((told.lock().unwrap().len(), errors.get()), (MAX_REPORTS, 106));
        // A guest that resets the device again and again does not flood the host's log.
        for _ in 0..100 {
            errors.reset();
            errors.note(&events, "write", &"the disk is full");
        }
        assert_eq!(told.lock().unwrap().len(), MAX_REPORTS);
    }

    #[test]
    fn e4_what_fails_again_after_a_reset_is_reported_when_the_last_report_is_long_ago() {
        let (mut reported, start) = (Reported::default(), Instant::now());
        let mut told = 0;
        // A minute after each other, and a reset a second.
        for second in 0..=180 {
            reported.reset = true;
            told += u32::from(reported.takes("the disk is full", start + Duration::from_secs(second)));
        }
        assert_eq!(told, 4);
        // Without a reset, never again.
        assert!(!reported.takes("the disk is full", start + Duration::from_secs(9999)));
        assert!(reported.takes("the disk is gone", start + Duration::from_secs(9999)));
    }
}
