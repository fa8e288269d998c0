//! Power off, reset and power button of a hardware-reduced ACPI machine.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, Assigned, AttachError, Attached, BusFault, Device, DeviceError, Effect, Event, MetricVisitor,
    Mmio, NodeHint, Placement, Requires, State, Syscall, VmRequest,
};

use crate::register;

const SLEEP_CONTROL: u8 = 0;
const SLEEP_STATUS: u8 = 1;
const RESET: u8 = 2;

/// Bits 2 to 4 of the sleep control register.
const SLP_TYP_SHIFT: u8 = 2;
const SLP_TYP_MASK: u8 = 0b111;
const SLP_EN: u8 = 1 << 5;

/// Sleep control, sleep status and reset registers (ACPI 6.5, sections 4.8.3.6 and 4.8.3.7), a byte each in this
/// order from I/O port 0x600, and a power button that raises an edge interrupt.
///
/// Sleep state S5 is the only one: entering it asks for [`VmRequest::Shutdown`], every other is ignored and
/// counted. The registers keep nothing: they read as zero, as a machine that has never slept.
#[derive(Debug)]
pub struct AcpiPower {
    id: String,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    button: OnceLock<Arc<Event>>,
    presses: AtomicU64,
    ignored_sleeps: AtomicU64,
}

impl AcpiPower {
    /// The sleep type that means S5, for the `\_S5` package of the DSDT.
    pub const S5_SLEEP_TYPE: u8 = 5;
    /// The value that resets the machine when written to the reset register, for the FADT's RESET_VALUE.
    pub const RESET_VALUE: u8 = 1;

    /// Power registers and button named `id`.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), shared: Arc::default() }
    }

    /// The button, for the VMM.
    pub fn button(&self) -> PowerButton {
        PowerButton(self.shared.clone())
    }
}

/// The power button of an [`AcpiPower`]: a clonable handle.
#[derive(Clone, Debug)]
pub struct PowerButton(Arc<Shared>);

impl PowerButton {
    /// Presses the button: the guest is asked to shut down, and does so in its own time or never.
    /// `NotConnected` before the device is attached.
    pub fn press(&self) -> io::Result<()> {
        self.0.button.get().ok_or(io::ErrorKind::NotConnected)?.signal()?;
        self.0.presses.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl Mmio for Shared {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        match register::byte(at, 3)? {
            RESET => Err(BusFault::WriteOnly),
            _ => Ok(0),
        }
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let value = value as u8;
        match register::byte(at, 3)? {
            SLEEP_CONTROL if value & SLP_EN != 0 => {
                if value >> SLP_TYP_SHIFT & SLP_TYP_MASK == AcpiPower::S5_SLEEP_TYPE {
                    return Ok(Effect::Vm(VmRequest::Shutdown));
                }
                self.ignored_sleeps.fetch_add(1, Ordering::Relaxed);
            }
            RESET if value == AcpiPower::RESET_VALUE => return Ok(Effect::Vm(VmRequest::Reset)),
            // WAK_STS is cleared by writing one; it is never set.
            SLEEP_STATUS => {}
            _ => {}
        }
        Ok(Effect::None)
    }
}

impl Device for AcpiPower {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires {
            ranges: vec![register::ports(0x600, 3)],
            interrupts: vec![register::interrupt(Placement::Any)],
            ..Requires::default()
        }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<Attached, AttachError> {
        let Some(irq) = assigned.interrupts.into_iter().next() else {
            return Err(AttachError { reason: "the power button has no interrupt".into(), source: None });
        };
        // Attached once; a second interrupt would have no button.
        let _ = self.shared.button.set(irq);
        Ok(Attached { ports: vec![self.shared.clone()], node: NodeHint::AcpiPower })
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn state(&self) -> State {
        State::Stateless
    }

    fn restore(&mut self, _: &SavedState<'_>) -> Result<(), StateError> {
        Err(register::STATELESS)
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The button's eventfd.
        &[Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("button_presses", self.shared.presses.load(Ordering::Relaxed));
        visitor.counter("ignored_sleep_requests", self.shared.ignored_sleeps.load(Ordering::Relaxed));
    }
}

#[cfg(test)]
mod tests;
