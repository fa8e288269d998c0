//! What all real-time clocks are as devices, whatever their registers.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, EventLoop, Handover, MetricVisitor, MmioMut, NodeKind,
    Requires, Syscall,
};

use super::alarm::{Alarm, Timed, Turns};
use crate::register::{IRQ, REGISTERS};

/// What a clock calls.
const SYSCALLS: &[Syscall] = &[
    // Where the kernel's vDSO does not serve the clock; the lock, the timer, interrupts, the loop.
    Syscall("clock_gettime"),
    Syscall("futex"),
    Syscall("timerfd_create"),
    Syscall("timerfd_settime"),
    Syscall("ioctl"),
    Syscall("write"),
    Syscall("read"),
    Syscall("epoll_ctl"),
    Syscall("epoll_wait"),
    Syscall("close"),
];

/// The registers of a kind of clock, and the time that they show.
pub trait Chip: Timed + MmioMut + std::fmt::Debug {
    /// What the clock is as part of a machine.
    const NODE: NodeKind;

    /// A clock that follows the host's.
    fn new(host: Box<dyn Fn() -> SystemTime + Send>) -> Self;

    /// Its registers and its interrupt.
    fn requires() -> Requires;

    /// The registers as after power-on. The battery keeps the time.
    fn reset(&mut self);

    /// The vCPUs run from now on, or stop. What has happened in the meantime counts once.
    fn run(&mut self, running: bool);

    /// Gives the clock its interrupt and its timer, or takes them away.
    fn set_alarm(&mut self, alarm: Option<Alarm>);

    /// The state as bytes.
    fn save(&self) -> SavedState<'static>;

    /// Takes over the state that has these bytes.
    fn load(&mut self, state: &SavedState<'_>) -> Result<(), StateError>;

    /// How often the guest has set the clock.
    fn sets(&self) -> u64;
}

/// A battery-backed clock with an alarm: an [`Rtc`](crate::Rtc) or a [`Pl031`](crate::Pl031).
///
/// The timer's turns are taken on an event loop: the VMM's, given by [`on`](Self::on), or one on a thread of the
/// clock's own, which is named after it.
#[derive(Debug)]
pub struct RealTimeClock<C: Chip> {
    id: String,
    port: Arc<Mutex<C>>,
    turns: Turns<C>,
}

impl<C: Chip> RealTimeClock<C> {
    /// A clock named `id` that follows the host's.
    pub fn new(id: impl Into<String>) -> Self {
        Self::with_clock(id, SystemTime::now)
    }

    /// A clock named `id` that follows `now`, which advances as the host's clock does.
    pub fn with_clock(id: impl Into<String>, now: impl Fn() -> SystemTime + Send + 'static) -> Self {
        let port = Arc::new(Mutex::new(C::new(Box::new(now))));
        Self { id: id.into(), port, turns: Turns::new() }
    }

    /// The same clock with its turns on `event_loop`, which the caller runs.
    #[must_use]
    pub fn on(mut self, event_loop: &EventLoop) -> Self {
        self.turns.set_loop(event_loop);
        self
    }

    pub(super) fn clock(&self) -> MutexGuard<'_, C> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the clock's part in its machine.
    fn end(&mut self) {
        self.clock().run(false);
        // In this order: the loop watches the timer.
        self.turns.end();
        self.clock().set_alarm(None);
    }
}

impl<C: Chip> Drop for RealTimeClock<C> {
    fn drop(&mut self) {
        self.end();
    }
}

impl<C: Chip> Device for RealTimeClock<C> {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        C::requires()
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let registers = assigned.registers(REGISTERS)?;
        let interrupt = assigned.interrupt(IRQ)?.clone();
        let turns = self.turns.begin(&self.id, &self.port, &assigned)?;
        let alarm = Alarm::new(interrupt, assigned.events().clone(), turns);
        registers.answer(self.port.clone());
        let mut clock = self.clock();
        clock.set_alarm(Some(alarm));
        clock.reset();
        drop(clock);
        Ok(C::NODE)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.clock().run(false);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.clock().run(true);
        Ok(())
    }

    /// The battery keeps the time.
    fn reset(&mut self) -> Result<(), DeviceError> {
        self.clock().reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Saved(Handover::new(self.clock().save())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        self.clock().load(&handover.state)
    }

    /// The battery keeps the time for the next machine.
    fn detach(&mut self) -> Result<(), DeviceError> {
        self.end();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        SYSCALLS
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("clock_sets", "Times that the guest has set the clock.", self.clock().sets());
    }
}
