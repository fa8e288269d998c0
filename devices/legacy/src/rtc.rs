//! Real-time clocks: a PC's MC146818 with its CMOS RAM here, Arm's PL031 in `pl031`.

mod alarm;
mod calendar;
mod clock;
mod moment;
mod pl031;
mod registers;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ossature_bus::state::StateError;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, EventLoop, Handover, InterruptRequest, MetricVisitor,
    NodeKind, RegistersRequest, Requires, Syscall,
};

use crate::register::{IRQ, REGISTERS};
use alarm::{Alarm, Turns};
use clock::Clock;
pub use pl031::Pl031;
use state::RtcState;

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
/// The interrupt of a PC's clock (ISA).
const ISA_IRQ: u32 = 8;

/// A battery-backed clock (Motorola MC146818A data sheet; the century at 0x32 as in the ACPI FADT) at I/O ports
/// 0x70 and 0x71, with 128 bytes of CMOS RAM, all zero at first.
///
/// It shows the host's UTC, plus what the guest has set it off by. It is never seen in the middle of an update:
/// UIP stays clear, and reading register A takes a snapshot that the reads after it see.
///
/// Its interrupt 8 is raised by the periodic rate (2 to 8192 Hz), the alarm and the end of an update, as far as the
/// guest enables them: once, until the guest reads register C. While none is enabled or one is pending, no timer of the
/// host runs. What happens while the machine is paused counts once when it goes on.
///
/// Saved are RAM, registers and how far the guest has set the clock off the host's, not the time: once restored, it
/// shows the host's time as it is then, off by as much; an alarm that has passed in the meantime is raised. The battery
/// lasts.
///
/// The timer's turns are taken on an event loop: the VMM's, given by [`on`](Self::on), or one on a thread of the
/// clock's own, which is named after it.
#[derive(Debug)]
pub struct Rtc {
    id: String,
    port: Arc<Mutex<Clock>>,
    turns: Turns<Clock>,
}

impl Rtc {
    /// A clock named `id` that follows the host's.
    pub fn new(id: impl Into<String>) -> Self {
        Self::with_clock(id, SystemTime::now)
    }

    /// A clock named `id` that follows `now`, which advances as the host's clock does.
    pub fn with_clock(id: impl Into<String>, now: impl Fn() -> SystemTime + Send + 'static) -> Self {
        let port = Arc::new(Mutex::new(Clock::new(Box::new(now))));
        Self { id: id.into(), port, turns: Turns::new() }
    }

    /// The same clock with its turns on `event_loop`, which the caller runs.
    #[must_use]
    pub fn on(mut self, event_loop: &EventLoop) -> Self {
        self.turns.set_loop(event_loop);
        self
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
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

impl Drop for Rtc {
    fn drop(&mut self) {
        self.end();
    }
}

impl Device for Rtc {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new()
            .registers(RegistersRequest::ports(REGISTERS, 2).fixed(0x70))
            .interrupt(InterruptRequest::edge(IRQ).fixed(ISA_IRQ).rare())
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
        Ok(NodeKind::Rtc)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.clock().run(false);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.clock().run(true);
        Ok(())
    }

    /// The battery keeps time and RAM; the guest's unfinished setting of the clock ends.
    fn reset(&mut self) -> Result<(), DeviceError> {
        self.clock().reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Saved(Handover::new(self.clock().state().save())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let state = RtcState::load(&handover.state)?;
        self.clock().take_over(state);
        Ok(())
    }

    /// The battery keeps time and RAM for the next machine.
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

#[cfg(test)]
mod tests;
