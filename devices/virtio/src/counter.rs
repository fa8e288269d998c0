//! Counters that one worker writes and anybody reads.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

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

/// The host's failures: all are counted, and each is reported that was not yet since the last reset.
#[derive(Debug, Default)]
pub(crate) struct HostErrors {
    count: Counter,
    reported: Mutex<Vec<String>>,
}

impl HostErrors {
    /// Notes that `action` failed.
    pub(crate) fn note(&self, events: &EventSink, action: &str, error: &impl Display) {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        // One thread at a time, by the lock.
        self.count.add(1);
        if reported.len() < MAX_REPORTS {
            Self::report(reported, events, format!("cannot {action}: {error}"));
        }
    }

    /// Reports what was noticed of the host and has not made anything fail.
    pub(crate) fn tell(&self, events: &EventSink, reason: String) {
        let reported = self.reported.lock().unwrap_or_else(PoisonError::into_inner);
        if reported.len() < MAX_REPORTS {
            Self::report(reported, events, reason);
        }
    }

    fn report(mut reported: MutexGuard<'_, Vec<String>>, events: &EventSink, reason: String) {
        if !reported.contains(&reason) {
            reported.push(reason.clone());
            drop(reported);
            events.report(DeviceEvent::HostError { reason });
        }
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.count.get()
    }

    /// Each is reported again.
    pub(crate) fn reset(&self) {
        self.reported.lock().unwrap_or_else(PoisonError::into_inner).clear();
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
        errors.reset();
        errors.note(&events, "write", &"the disk is full");
        assert_eq!(told.lock().unwrap().len(), MAX_REPORTS + 1);
    }
}
