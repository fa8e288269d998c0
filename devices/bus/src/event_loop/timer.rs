//! A function that a loop calls once, after a while (timerfd_create(2)).

use std::io;
use std::os::fd::AsRawFd;
use std::time::Duration;

use vmm_sys_util::timerfd::TimerFd;

use super::handler::{Handler, Interest, Source, Turn};
use super::hosted::Hosted;

/// Longer than any machine runs, and within what the kernel takes on every host.
const LONGEST: Duration = Duration::from_secs(i32::MAX as u64);

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
    timer: TimerFd,
    /// Taken when the time is over.
    f: Option<Box<dyn FnOnce() + Send>>,
}

impl Alarm {
    pub(super) fn new(delay: Duration, f: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let mut timer = TimerFd::new()?;
        // A delay of 0 would not arm it.
        timer.reset(delay.clamp(Duration::from_nanos(1), LONGEST), None)?;
        Ok(Self { timer, f: Some(Box::new(f)) })
    }
}

impl Handler for Alarm {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.timer.as_raw_fd(), interest: Interest::Readable }]
    }

    fn turn(&mut self, _: u16) -> Turn {
        // Its first turn comes at once; it is armed until its time is over.
        let is_over = matches!(self.timer.is_armed(), Ok(false));
        if let Some(f) = self.f.take_if(|_| is_over) {
            f();
        }
        Turn::Sleep
    }
}
