//! Counters that one worker writes and anybody reads.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

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

/// The host's failures: all are counted, the first until the next reset is reported.
#[derive(Debug, Default)]
pub(crate) struct HostErrors {
    count: Counter,
    reported: AtomicBool,
}

impl HostErrors {
    /// Notes that `action` failed. Only one thread at a time may call it.
    pub(crate) fn note(&self, events: &EventSink, action: &str, error: &impl Display) {
        self.count.add(1);
        if !self.reported.swap(true, Ordering::Relaxed) {
            events.report(DeviceEvent::HostError { reason: format!("cannot {action}: {error}") });
        }
    }

    /// How many there were.
    pub(crate) fn get(&self) -> u64 {
        self.count.get()
    }

    /// The next one is reported again.
    pub(crate) fn reset(&self) {
        self.reported.store(false, Ordering::Relaxed);
    }
}
