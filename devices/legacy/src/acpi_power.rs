//! Power off, reset and power button of a hardware-reduced ACPI machine, or the button alone.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, Interrupt,
    InterruptRequest, MetricVisitor, Mmio, NodeKind, RegistersRequest, Requires, Syscall, VmRequest,
};

use crate::register::{self, IRQ, REGISTERS};

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
///
/// A machine that powers off and resets by other means, such as one of Arm by PSCI, has the
/// [button alone](Self::button_only), which ACPI tables describe on any architecture and device trees as a key.
#[derive(Debug)]
pub struct AcpiPower {
    id: String,
    has_registers: bool,
    shared: Arc<PowerRegisters>,
}

#[derive(Debug, Default)]
struct PowerRegisters {
    /// The button's interrupt while the device is attached.
    button: Mutex<Option<Interrupt>>,
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
        Self { id: id.into(), has_registers: true, shared: Arc::default() }
    }

    /// A power button named `id`, without registers.
    pub fn button_only(id: impl Into<String>) -> Self {
        Self { has_registers: false, ..Self::new(id) }
    }

    /// The button, for the VMM.
    pub fn button(&self) -> PowerButton {
        PowerButton(self.shared.clone())
    }
}

/// The power button of an [`AcpiPower`]: a clonable handle.
#[derive(Clone, Debug)]
pub struct PowerButton(Arc<PowerRegisters>);

impl PowerButton {
    /// Presses the button: the guest is asked to shut down, and does so in its own time or never.
    /// `NotConnected` while the device is not attached.
    pub fn press(&self) -> io::Result<()> {
        self.0.button().as_ref().ok_or(io::ErrorKind::NotConnected)?.signal()?;
        self.0.presses.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

impl PowerRegisters {
    fn button(&self) -> MutexGuard<'_, Option<Interrupt>> {
        self.button.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mmio for PowerRegisters {
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
        let button = Requires::new().interrupt(InterruptRequest::edge(IRQ).rare());
        match self.has_registers {
            true => button.registers(RegistersRequest::ports(REGISTERS, 3).fixed(0x600)),
            false => button,
        }
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let button = assigned.interrupt(IRQ)?.clone();
        if self.has_registers {
            assigned.registers(REGISTERS)?.answer(self.shared.clone());
        }
        *self.shared.button() = Some(button);
        Ok(if self.has_registers { NodeKind::AcpiPower } else { NodeKind::PowerButton })
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

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(register::STATELESS)
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        *self.shared.button() = None;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The lock, and the interrupt.
        &[Syscall("futex"), Syscall("ioctl")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter(
            "button_presses",
            "Presses of the power button.",
            self.shared.presses.load(Ordering::Relaxed),
        );
        visitor.counter(
            "ignored_sleep_requests",
            "Sleep states other than off that the guest asked for.",
            self.shared.ignored_sleeps.load(Ordering::Relaxed),
        );
    }
}

#[cfg(test)]
mod tests;
