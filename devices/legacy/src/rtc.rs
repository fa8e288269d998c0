//! An MC146818 real-time clock with its CMOS RAM.

mod calendar;
mod clock;
mod registers;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ossature_bus::state::StateError;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, Handover, MetricVisitor, NodeKind, RegistersRequest,
    Requires, Syscall,
};

use crate::register::REGISTERS;
use clock::Clock;
use state::RtcState;

/// A battery-backed clock (Motorola MC146818A data sheet; the century at 0x32 as in the ACPI FADT) at I/O ports
/// 0x70 and 0x71, with 128 bytes of CMOS RAM, all zero at first.
///
/// It shows the host's UTC, plus what the guest has set it off by. It is never seen in the middle of an update:
/// UIP stays clear, and reading register A takes a snapshot that the reads after it see. It raises no interrupt:
/// the enables for the periodic, alarm and update interrupts read as zero, and boot tables describe it without
/// an interrupt, so that guests do not wait for one.
///
/// Saved are RAM, registers and how far the guest has set the clock off the host's, not the time: once restored, it
/// shows the host's time as it is then, off by as much. The battery lasts.
#[derive(Debug)]
pub struct Rtc {
    id: String,
    port: Arc<Mutex<Clock>>,
}

impl Rtc {
    /// A clock named `id` that follows the host's.
    pub fn new(id: impl Into<String>) -> Self {
        Self::with_clock(id, SystemTime::now)
    }

    /// A clock named `id` that follows `now`.
    pub fn with_clock(id: impl Into<String>, now: impl Fn() -> SystemTime + Send + 'static) -> Self {
        Self { id: id.into(), port: Arc::new(Mutex::new(Clock::new(Box::new(now)))) }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for Rtc {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(RegistersRequest::ports(REGISTERS, 2).fixed(0x70))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers(REGISTERS)?.answer(self.port.clone());
        self.clock().reset();
        Ok(NodeKind::Rtc)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
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
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // Where the kernel's vDSO does not serve the clock.
        &[Syscall("clock_gettime")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("clock_sets", "Times that the guest has set the clock.", self.clock().sets());
    }
}

#[cfg(test)]
mod tests;
