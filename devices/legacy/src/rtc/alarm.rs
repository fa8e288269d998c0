//! The host's timer behind a clock's interrupts, the interrupt itself, and the loop on which the clock takes its turns.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ossature_bus::{
    Assigned, DeviceError, DeviceEvent, EventLoop, EventSink, Handler, Hosted, Interest, Interrupt,
    LoopHandle, LoopThread, Source, Turn,
};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Longer than any guest sleeps, and within what the kernel takes on every host.
const LONGEST: Duration = Duration::from_secs(i32::MAX as u64);

/// What the clock has of its machine.
#[derive(Debug)]
pub struct Alarm {
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

/// A clock behind a lock.
pub trait Timed: Send + 'static {
    /// Does what is due, and arms the alarm for what is next.
    fn settle(&mut self);
}

/// The clock's turns on its event loop: when the timer is over.
struct RtcTurns<C> {
    clock: Arc<Mutex<C>>,
}

impl<C: Timed> Handler for RtcTurns<C> {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn turn(&mut self, _: u16) -> Turn {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner).settle();
        Turn::Sleep
    }
}

/// Where a clock takes its turns: on a loop that was given, or on one on a thread of its own.
#[derive(Debug)]
pub struct Turns<C: Timed> {
    event_loop: Option<EventLoop>,
    hosted: Option<Hosted<RtcTurns<C>>>,
    thread: Option<LoopThread>,
}

impl<C: Timed> Turns<C> {
    pub(super) fn new() -> Self {
        Self { event_loop: None, hosted: None, thread: None }
    }

    pub(super) fn set_loop(&mut self, event_loop: &EventLoop) {
        self.event_loop = Some(event_loop.clone());
    }

    /// Has the clock of the device `id` take turns on its loop when its timer is over.
    pub(super) fn begin(
        &mut self,
        id: &str,
        clock: &Arc<Mutex<C>>,
        assigned: &Assigned,
    ) -> Result<LoopHandle, DeviceError> {
        let failed = |e: io::Error| DeviceError::new("no event loop for the real-time clock").with_source(e);
        let event_loop = match &self.event_loop {
            Some(event_loop) => event_loop,
            None => self.thread.insert(LoopThread::start(id).map_err(failed)?).event_loop(),
        };
        let events = assigned.events().clone();
        let event_loop = event_loop.on_panic(move |panic| {
            events.report(DeviceEvent::Panicked { message: panic.message });
        });
        match event_loop.host(RtcTurns { clock: clock.clone() }) {
            Ok(hosted) => Ok(self.hosted.insert(hosted).handle().clone()),
            Err(e) => {
                self.thread = None;
                Err(failed(e.source))
            }
        }
    }

    /// Ends the turns. The loop watches the timer: it is closed afterwards.
    pub(super) fn end(&mut self) {
        (self.hosted, self.thread) = (None, None);
    }
}
