//! The host's timer behind the clock's interrupts, and the interrupt itself.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ossature_bus::{DeviceEvent, EventSink, Handler, Interest, Interrupt, LoopHandle, Source, Turn};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

use super::clock::Clock;

/// Longer than any guest sleeps, and within what the kernel takes on every host.
const LONGEST: Duration = Duration::from_secs(i32::MAX as u64);

/// What the clock has of its machine.
#[derive(Debug)]
pub(super) struct Alarm {
    interrupt: Interrupt,
    events: EventSink,
    /// Where the clock takes its turns.
    on_loop: LoopHandle,
    /// Once the guest has enabled an interrupt: most never do.
    timer: Option<OwnedFd>,
    armed: bool,
    reported: bool,
}

impl Alarm {
    pub(super) fn new(interrupt: Interrupt, events: EventSink, on_loop: LoopHandle) -> Self {
        Self { interrupt, events, on_loop, timer: None, armed: false, reported: false }
    }

    pub(super) fn raise(&mut self) {
        let raised = self.interrupt.signal();
        self.check("interrupt of the real-time clock", raised);
    }

    /// Has the clock take a turn after `delay`, or none.
    pub(super) fn arm(&mut self, delay: Option<Duration>) {
        if delay.is_none() && !self.armed {
            return;
        }
        self.armed = delay.is_some();
        // A delay of 0 would not arm it.
        let delay = delay.map_or(Duration::ZERO, |delay| delay.clamp(Duration::from_nanos(1), LONGEST));
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec { tv_sec: delay.as_secs() as i64, tv_nsec: delay.subsec_nanos().into() };
        let spec = Itimerspec { it_interval: none, it_value: value };
        let set = self.timer().and_then(|timer| {
            timerfd_settime(timer, TimerfdTimerFlags::empty(), &spec).map_err(io::Error::from)
        });
        self.check("timer of the real-time clock", set.map(drop));
    }

    fn timer(&mut self) -> io::Result<&OwnedFd> {
        match &mut self.timer {
            Some(timer) => Ok(timer),
            none => {
                let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
                let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
                let source = Source { token: 0, fd: timer.as_raw_fd(), interest: Interest::Readable };
                self.on_loop.watch(source).map_err(|error| error.source)?;
                Ok(none.insert(timer))
            }
        }
    }

    fn check(&mut self, what: &str, result: io::Result<()>) {
        let Err(error) = result else { return };
        if !std::mem::replace(&mut self.reported, true) {
            self.events.report(DeviceEvent::HostError { reason: format!("{what}: {error}") });
        }
    }
}

/// The clock's turns on its event loop: when the timer is over.
pub(super) struct RtcTurns {
    pub(super) clock: Arc<Mutex<Clock>>,
}

impl Handler for RtcTurns {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).settle();
        Turn::Sleep
    }
}
