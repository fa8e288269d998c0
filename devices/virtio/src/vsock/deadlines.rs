//! What is given up after a while: queues of moments, one for each length of a wait, and one timer of the host's.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// What is awaited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Wait {
    /// A busy socket of the host, or a descriptor for a connection.
    Retry,
    /// The text of a program, or the guest's answer to it.
    Answer,
    /// The guest's word that a connection is over.
    Close,
}

const WAITS: [(Wait, Duration); 3] = [
    (Wait::Retry, Duration::from_millis(5)),
    (Wait::Answer, Duration::from_secs(10)),
    (Wait::Close, Duration::from_secs(8)),
];

/// Moments by the number of what waits.
#[derive(Debug)]
pub(super) struct Deadlines {
    timer: OwnedFd,
    armed: Option<Instant>,
    waits: [(Wait, Duration); WAITS.len()],
    queues: [VecDeque<(Instant, u64)>; WAITS.len()],
}

impl Deadlines {
    pub(super) fn new() -> io::Result<Self> {
        let timer =
            timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        Ok(Self { timer, armed: None, waits: WAITS, queues: Default::default() })
    }

    #[cfg(test)]
    pub(super) fn set_wait(&mut self, wait: Wait, after: Duration) {
        self.waits.iter_mut().filter(|(other, _)| *other == wait).for_each(|(_, old)| *old = after);
    }

    /// Polls readable when there may be something due. Edge-triggered, so that nobody reads it.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// Notes that `who` waits. Those that do not any more, by `lives`, are forgotten before they are too many for `room`.
    pub(super) fn push(&mut self, wait: Wait, who: u64, room: usize, lives: impl Fn(u64) -> bool) {
        let now = Instant::now();
        for (queue, (_, after)) in
            self.queues.iter_mut().zip(self.waits).filter(|(_, (other, _))| *other == wait)
        {
            if queue.len() > 2 * room + 64 {
                queue.retain(|(_, who)| lives(*who));
            }
            queue.push_back((now + after, who));
        }
        self.arm(now);
    }

    /// The next that is due.
    pub(super) fn pop_due(&mut self) -> Option<(Wait, u64)> {
        if self.queues.iter().all(VecDeque::is_empty) {
            self.armed = None;
            return None;
        }
        let now = Instant::now();
        for (queue, (wait, _)) in self.queues.iter_mut().zip(self.waits) {
            if queue.front().is_some_and(|(at, _)| *at <= now) {
                return queue.pop_front().map(|(_, who)| (wait, who));
            }
        }
        self.armed = None;
        self.arm(now);
        None
    }

    pub(super) fn clear(&mut self) {
        self.queues = Default::default();
        self.armed = None;
    }

    fn arm(&mut self, now: Instant) {
        let first = self.queues.iter().filter_map(|queue| queue.front()).map(|(at, _)| *at).min();
        let Some(at) = first.filter(|at| self.armed.is_none_or(|armed| *at < armed)) else { return };
        self.armed = Some(at);
        // 0 would disarm it.
        let after = at.saturating_duration_since(now).max(Duration::from_micros(100));
        let value = Timespec { tv_sec: after.as_secs() as _, tv_nsec: after.subsec_nanos().into() };
        let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
        // A timer takes every time that lies ahead.
        let _ = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once);
    }
}
