//! What happened to a machine, in order, for every follower.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use ossature_bus::{DeviceEvent, Event, EventLoop, Handler, Hosted, LoopHandle, Source, Turn};

use super::Outcome;
use crate::VcpuCrash;

/// The log keeps this many events; a follower that has not taken the oldest by then has missed it, so that no guest
/// can make the host's memory grow.
const CAPACITY: usize = 256;

/// A function on a loop is called with so many events before the loop's other handlers have their turns.
const EVENTS_IN_A_TURN: usize = 16;

/// Something that happened to a machine.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum MachineEvent {
    /// All vCPUs run.
    Started,
    /// All vCPUs and devices are paused.
    Paused,
    /// All vCPUs and devices run again.
    Resumed,
    /// The machine was reset in place: its guest starts again.
    Reset,
    /// The guest's kernel reported that it has panicked. The guest runs on until it stops by itself.
    GuestPanic,
    /// The guest caused a triple fault, in a machine that was built to take it for a request for a reset: see
    /// [`OnTripleFault`](super::OnTripleFault).
    TripleFault {
        /// The vCPU and its registers.
        crash: Arc<VcpuCrash>,
    },
    /// A device was added.
    DeviceAdded {
        /// Its id.
        id: String,
    },
    /// A device was removed.
    DeviceRemoved {
        /// Its id.
        id: String,
    },
    /// A device took the place of another one of the same id.
    DeviceReplaced {
        /// Its id.
        id: String,
    },
    /// A device reports something.
    Device {
        /// The device's id.
        id: String,
        /// What.
        event: DeviceEvent,
    },
    /// The machine has ended. The last event of every machine.
    Ended(Outcome),
}

/// How much an event matters to the user of a machine; the most severe is the greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// What happens in the life of any machine.
    Info,
    /// The guest's drivers do something wrong.
    Warning,
    /// Something fails on the host.
    Error,
}

impl MachineEvent {
    /// How much the event matters to the user.
    pub fn severity(&self) -> Severity {
        match self {
            Self::Device { event: DeviceEvent::HostError { .. } | DeviceEvent::Stalled { .. }, .. } => {
                Severity::Error
            }
            // The outcome says it.
            Self::Device { event: DeviceEvent::Panicked { .. }, .. } => Severity::Info,
            Self::Device { .. } => Severity::Warning,
            _ => Severity::Info,
        }
    }
}

impl fmt::Display for MachineEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started => f.write_str("the machine has started"),
            Self::Paused => f.write_str("the machine is paused"),
            Self::Resumed => f.write_str("the machine runs again"),
            Self::Reset => f.write_str("the machine was reset"),
            Self::GuestPanic => f.write_str("the guest's kernel panicked"),
            Self::TripleFault { crash } => write!(f, "the guest resets the machine by a fault: {crash}"),
            Self::DeviceAdded { id } => write!(f, "device {id:?} was added"),
            Self::DeviceRemoved { id } => write!(f, "device {id:?} was removed"),
            Self::DeviceReplaced { id } => write!(f, "device {id:?} was replaced"),
            Self::Device { id, event } => write!(f, "device {id:?}: {event}"),
            Self::Ended(outcome) => write!(f, "the machine has ended: {outcome}"),
        }
    }
}

/// How a follower is told that there are events.
#[derive(Debug)]
enum Waker {
    Descriptor(Arc<Event>),
    Turn(LoopHandle),
}

impl Waker {
    fn wake(&self) {
        match self {
            // One that cannot be written is one whose reader will find the count already set.
            Self::Descriptor(event) => _ = event.signal(),
            Self::Turn(handle) => handle.wake(0),
        }
    }
}

#[derive(Debug, Default)]
struct Log {
    events: VecDeque<MachineEvent>,
    /// How many events came before those.
    gone: u64,
    /// Wake followers that have to be told of events.
    wakers: Vec<Weak<Waker>>,
    /// Followers that wait: nobody else needs to be woken.
    waiting: usize,
}

/// The sending side, shared by vCPU threads, devices and the machine. Never blocks.
#[derive(Clone, Debug, Default)]
pub(crate) struct EventLog {
    shared: Arc<(Mutex<Log>, Condvar)>,
}

impl EventLog {
    fn lock(&self) -> MutexGuard<'_, Log> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, event: MachineEvent) {
        let mut log = self.lock();
        if matches!(log.events.back(), Some(MachineEvent::Ended(_))) {
            return;
        }
        if log.events.len() == CAPACITY {
            log.events.pop_front();
            log.gone += 1;
        }
        log.events.push_back(event);
        log.wakers.retain(|waker| match waker.upgrade() {
            Some(waker) => {
                waker.wake();
                true
            }
            None => false,
        });
        let wake = log.waiting > 0;
        drop(log);
        if wake {
            self.shared.1.notify_all();
        }
    }

    pub(crate) fn stream(&self) -> EventStream {
        EventStream { log: self.clone(), next: 0, missed: 0, descriptor: None }
    }
}

/// A follower of a machine's events. Each follower sees every event, from the first that is still kept; a clone goes on
/// from where it was cloned.
#[derive(Debug)]
pub struct EventStream {
    log: EventLog,
    /// The number of the next event to take.
    next: u64,
    missed: u64,
    descriptor: Option<Arc<Event>>,
}

impl Clone for EventStream {
    fn clone(&self) -> Self {
        Self { log: self.log.clone(), next: self.next, missed: self.missed, descriptor: None }
    }
}

impl EventStream {
    fn take(&mut self, log: &Log) -> Option<MachineEvent> {
        if self.next < log.gone {
            self.missed += log.gone - self.next;
            self.next = log.gone;
        }
        let event = log.events.get((self.next - log.gone) as usize)?.clone();
        self.next += 1;
        Some(event)
    }

    /// The next event, if there is one.
    pub fn try_next(&mut self) -> Option<MachineEvent> {
        let log = self.log.clone();
        let log = log.lock();
        let event = self.take(&log);
        // With the lock: what is signalled from here on is for events that come.
        if self.next == log.gone + log.events.len() as u64 {
            if let Some(descriptor) = &self.descriptor {
                let _ = descriptor.take();
            }
        }
        event
    }

    /// The next event, waiting for it up to `timeout`.
    pub fn next_timeout(&mut self, timeout: Duration) -> Option<MachineEvent> {
        let deadline = Instant::now().checked_add(timeout);
        let shared = self.log.clone();
        let mut log = shared.lock();
        loop {
            if let Some(event) = self.take(&log) {
                return Some(event);
            }
            let left = match deadline {
                Some(deadline) => deadline.checked_duration_since(Instant::now())?,
                None => timeout,
            };
            log.waiting += 1;
            log = shared.shared.1.wait_timeout(log, left).unwrap_or_else(PoisonError::into_inner).0;
            log.waiting -= 1;
        }
    }

    /// The number of events that this follower has missed because it was too slow.
    pub fn missed(&self) -> u64 {
        self.missed
    }

    /// Gives the follower a descriptor, which most do not need.
    pub fn pollable(mut self) -> io::Result<PollableEvents> {
        let descriptor = Arc::new(Event::new()?);
        self.descriptor = Some(Arc::clone(&descriptor));
        let waker = self.wake_by(Waker::Descriptor(Arc::clone(&descriptor)));
        Ok(PollableEvents { stream: self, descriptor, _waker: waker })
    }

    /// Calls `f` with each event, in turns on `event_loop`, for as long as the result lives. It needs no descriptor.
    ///
    /// ```
    /// use ossature_bus::EventLoop;
    /// use ossature_core::machine::{Machine, MachineEvent};
    /// use ossature_core::scripted::{Script, Scripted};
    ///
    /// let machine = Machine::builder("example").build(&Scripted::new([Script::new()]))?;
    /// let here = EventLoop::new()?;
    /// let _followed = machine.events().follow_on(&here, |event| println!("{event}"))?;
    /// machine.start()?;
    /// machine.stop()?;
    /// here.pass()?; // what happened last
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn follow_on(
        self,
        event_loop: &EventLoop,
        f: impl FnMut(MachineEvent) + Send + 'static,
    ) -> io::Result<FollowedEvents> {
        let turns = FollowerTurns { stream: self.clone(), f: Box::new(f) };
        let hosted = event_loop.host(turns).map_err(|error| error.source)?;
        let waker = self.wake_by(Waker::Turn(hosted.handle().clone()));
        Ok(FollowedEvents { _waker: waker, _hosted: hosted })
    }

    /// Has the follower woken for events that come, and for those that wait.
    fn wake_by(&self, waker: Waker) -> Arc<Waker> {
        let waker = Arc::new(waker);
        let mut log = self.log.lock();
        if self.next < log.gone + log.events.len() as u64 {
            waker.wake();
        }
        log.wakers.push(Arc::downgrade(&waker));
        waker
    }
}

/// An [`EventStream`] with a descriptor that is readable while there are events to take, for an event loop.
#[derive(Debug)]
pub struct PollableEvents {
    stream: EventStream,
    descriptor: Arc<Event>,
    _waker: Arc<Waker>,
}

impl Deref for PollableEvents {
    type Target = EventStream;

    fn deref(&self) -> &EventStream {
        &self.stream
    }
}

impl DerefMut for PollableEvents {
    fn deref_mut(&mut self) -> &mut EventStream {
        &mut self.stream
    }
}

impl AsFd for PollableEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl AsRawFd for PollableEvents {
    fn as_raw_fd(&self) -> RawFd {
        self.descriptor.as_raw_fd()
    }
}

/// A function that is called with each event, by [`EventStream::follow_on`], until this is dropped.
#[derive(Debug)]
#[must_use]
pub struct FollowedEvents {
    _waker: Arc<Waker>,
    _hosted: Hosted<FollowerTurns>,
}

struct FollowerTurns {
    stream: EventStream,
    f: Box<dyn FnMut(MachineEvent) + Send>,
}

impl Handler for FollowerTurns {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        for _ in 0..EVENTS_IN_A_TURN {
            let Some(event) = self.stream.try_next() else { return Turn::Sleep };
            (self.f)(event);
        }
        Turn::Again
    }
}

#[cfg(test)]
mod tests;
