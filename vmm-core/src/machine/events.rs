//! The event stream: what happened to a machine, in order, for whoever watches it.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::{DeviceEvent, Event};

/// Events that a reader has not taken yet are kept up to this many; later ones are counted and dropped, so
/// that no guest can make the host's memory grow.
const CAPACITY: usize = 256;

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// All vCPUs run.
    Started,
    /// All vCPUs and devices stand still.
    Paused,
    /// All vCPUs and devices run again.
    Resumed,
    /// The guest asked for a reset. The machine has stopped.
    Reset,
    /// The guest powered off. The machine has stopped.
    Shutdown,
    /// The guest's kernel reported that it has panicked. The guest runs on until it stops by itself.
    GuestPanic,
    /// A vCPU cannot go on (triple fault, emulation failure, failed entry). The machine has stopped.
    Crashed {
        /// What happened, with registers.
        reason: String,
    },
    /// The VMM stopped the machine.
    Stopped,
    /// A device's host side reports something.
    Device {
        /// The device's id.
        id: String,
        /// What.
        event: DeviceEvent,
    },
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<MachineEvent>,
    dropped: u64,
    /// Readers that wait: nobody else needs to be woken.
    waiting: usize,
    /// Made when somebody asks for a descriptor: most machines are watched by `wait` alone.
    fd: Option<Arc<Event>>,
}

impl Queue {
    fn pop(&mut self) -> Option<MachineEvent> {
        let event = self.events.pop_front();
        if self.events.is_empty() {
            if let Some(fd) = &self.fd {
                let _ = fd.take();
            }
        }
        event
    }
}

/// The sending side, shared by vCPU threads, devices and the machine. Never blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventLog {
    shared: Arc<(Mutex<Queue>, Condvar)>,
}

impl EventLog {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, event: MachineEvent) {
        let mut queue = self.lock();
        if queue.events.len() == CAPACITY {
            queue.dropped += 1;
            return;
        }
        queue.events.push_back(event);
        if let Some(fd) = &queue.fd {
            // An eventfd that cannot be written is one whose reader will find the count already set.
            let _ = fd.signal();
        }
        let wake = queue.waiting > 0;
        drop(queue);
        if wake {
            self.shared.1.notify_all();
        }
    }

    pub(crate) fn stream(&self) -> EventStream {
        EventStream { log: self.clone() }
    }
}

/// The reading side of a machine's events. Clones share one queue: each event is read once.
#[derive(Clone, Debug)]
pub struct EventStream {
    log: EventLog,
}

impl EventStream {
    /// The next event, if there is one.
    pub fn try_next(&self) -> Option<MachineEvent> {
        self.log.lock().pop()
    }

    /// The next event, waiting for it up to `timeout`.
    pub fn next_timeout(&self, timeout: Duration) -> Option<MachineEvent> {
        let until = Instant::now() + timeout;
        let mut queue = self.log.lock();
        while queue.events.is_empty() {
            let left = until.checked_duration_since(Instant::now())?;
            queue.waiting += 1;
            queue = self.log.shared.1.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
            queue.waiting -= 1;
        }
        queue.pop()
    }

    /// How many events were dropped because nobody read the stream.
    pub fn dropped(&self) -> u64 {
        self.log.lock().dropped
    }

    /// A descriptor that is readable while events wait, for a VMM's own loop. It lives as long as the stream.
    pub fn fd(&self) -> io::Result<RawFd> {
        let mut queue = self.log.lock();
        if let Some(fd) = &queue.fd {
            return Ok(fd.as_raw_fd());
        }
        let fd = Arc::new(Event::new()?);
        if !queue.events.is_empty() {
            fd.signal()?;
        }
        let raw = fd.as_raw_fd();
        queue.fd = Some(fd);
        Ok(raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_order_and_wake_a_descriptor() {
        let log = EventLog::default();
        let stream = log.stream();
        log.push(MachineEvent::Started);
        let fd = stream.fd().unwrap();
        assert_eq!(stream.fd().unwrap(), fd, "one descriptor for a stream");
        log.push(MachineEvent::Shutdown);
        assert_eq!(stream.try_next(), Some(MachineEvent::Started));
        assert_eq!(stream.next_timeout(Duration::ZERO), Some(MachineEvent::Shutdown));
        assert_eq!(stream.try_next(), None);
        assert_eq!(stream.next_timeout(Duration::ZERO), None);
    }

    #[test]
    fn b13_a_flood_of_events_is_bounded_and_counted() {
        let log = EventLog::default();
        for _ in 0..CAPACITY + 7 {
            log.push(MachineEvent::GuestPanic);
        }
        let stream = log.stream();
        assert_eq!(stream.dropped(), 7);
        assert_eq!(std::iter::from_fn(|| stream.try_next()).count(), CAPACITY);
    }

    #[test]
    fn a_reader_that_waits_is_woken() {
        let log = EventLog::default();
        let stream = log.stream();
        let reader = std::thread::spawn(move || stream.next_timeout(Duration::from_secs(60)));
        log.push(MachineEvent::Reset);
        assert_eq!(reader.join().unwrap(), Some(MachineEvent::Reset));
    }
}
