//! Timers on a loop (timerfd_create(2)): a source that wakes a handler at a time, and a function that is called once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_gettime,
    timerfd_settime,
};

use super::handler::{Handler, Interest, Source, Turn};
use super::hosted::Hosted;

/// Longer than any machine runs, and within what the kernel takes on every host.
const LONGEST: Duration = Duration::from_secs(i32::MAX as u64);

/// A source that wakes a handler, or a worker, when a time is over by the host's monotonic clock.
///
/// ```
/// use std::time::Duration;
/// use ossature_bus::{EventLoop, Handler, Source, TimerSource, Turn};
///
/// /// Waits twice before it ends the loop.
/// struct Patient(TimerSource, u32, EventLoop);
///
/// impl Handler for Patient {
///     fn sources(&self) -> Vec<Source> {
///         vec![self.0.source(0)]
///     }
///
///     fn turn(&mut self, _: u16) -> Turn {
///         if self.0.is_set() {
///             return Turn::Sleep;
///         }
///         self.1 += 1;
///         if self.1 > 2 {
///             self.2.stop();
///             return Turn::Sleep;
///         }
///         self.0.sleep(Duration::from_millis(1))
///     }
/// }
///
/// let event_loop = EventLoop::new()?;
/// let _hosted = event_loop.host(Patient(TimerSource::new()?, 0, event_loop.clone()))?;
/// event_loop.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// For sandboxes: timerfd_create makes it; timerfd_settime and timerfd_gettime are called while it runs.
#[derive(Debug)]
pub struct TimerSource(OwnedFd);

impl TimerSource {
    /// One that is not set.
    pub fn new() -> io::Result<Self> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        Ok(Self(timerfd_create(TimerfdClockId::Monotonic, flags)?))
    }

    /// The source: each time that is over is an event. Nobody needs to read the descriptor.
    pub fn source(&self, token: u16) -> Source {
        Source { token, fd: self.0.as_raw_fd(), interest: Interest::Readable }
    }

    /// Wakes when `delay` is over, and not at the time that was set before. Any thread may do so.
    pub fn set(&self, delay: Duration) -> io::Result<()> {
        // A delay of 0 would not set it.
        let delay = delay.clamp(Duration::from_nanos(1), LONGEST);
        let it_value = Timespec {
            tv_sec: delay.as_secs().try_into().unwrap_or(i32::MAX.into()),
            tv_nsec: delay.subsec_nanos().into(),
        };
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        let time = Itimerspec { it_interval, it_value };
        timerfd_settime(&self.0, TimerfdTimerFlags::empty(), &time)?;
        Ok(())
    }

    /// [Sets](Self::set) it, as the end of a turn: the next turn comes when `delay` is over, or at once if the host
    /// cannot set it.
    pub fn sleep(&self, delay: Duration) -> Turn {
        if self.set(delay).is_ok() { Turn::Sleep } else { Turn::Again }
    }

    /// Returns true if it is set and its time is not over.
    pub fn is_set(&self) -> bool {
        timerfd_gettime(&self.0).is_ok_and(|time| time.it_value.tv_sec != 0 || time.it_value.tv_nsec != 0)
    }
}

impl AsFd for TimerSource {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A call that is due later, by [`EventLoop::after`](crate::EventLoop::after). Dropping this cancels the call, or waits
/// for its end if it is under way on another thread.
///
/// For sandboxes: it makes the system calls timerfd_create, timerfd_settime, timerfd_gettime and close beside the
/// loop's own.
#[derive(Debug)]
#[must_use]
pub struct Timer {
    _hosted: Hosted<Alarm>,
}

impl Timer {
    pub(super) fn new(hosted: Hosted<Alarm>) -> Self {
        Self { _hosted: hosted }
    }
}

/// The handler of a timer.
pub(super) struct Alarm {
    timer: TimerSource,
    /// Taken when the time is over.
    f: Option<Box<dyn FnOnce() + Send>>,
}

impl Alarm {
    pub(super) fn new(delay: Duration, f: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let timer = TimerSource::new()?;
        timer.set(delay)?;
        Ok(Self { timer, f: Some(Box::new(f)) })
    }
}

impl Handler for Alarm {
    fn sources(&self) -> Vec<Source> {
        vec![self.timer.source(0)]
    }

    fn turn(&mut self, _: u16) -> Turn {
        // Its first turn comes at once; it is set until its time is over.
        if let Some(f) = self.f.take_if(|_| !self.timer.is_set()) {
            f();
        }
        Turn::Sleep
    }
}
