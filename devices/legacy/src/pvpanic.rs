//! A pvpanic port: a guest's kernel says that it has panicked.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Syscall, VmRequest,
};

use crate::register::{self, REGISTERS};

/// The guest has panicked.
const PANICKED: u8 = 1 << 0;
/// The guest has panicked and a crash kernel of its own takes over.
const CRASH_LOADED: u8 = 1 << 1;

/// A pvpanic port (QEMU's `docs/specs/pvpanic`, ISA variant): one byte at port 0x505 that reads as the events
/// it knows and takes an event when written. A panic asks for [`VmRequest::GuestPanic`]. A guest whose own crash
/// kernel takes over is counted and left to it.
#[derive(Debug)]
pub struct Pvpanic {
    id: String,
    port: Arc<PanicPort>,
}

#[derive(Debug, Default)]
struct PanicPort {
    panics: AtomicU64,
    crash_kernels: AtomicU64,
}

impl Pvpanic {
    /// A pvpanic port named `id`.
    pub fn new(id: impl Into<String>) -> Self {
        Self { id: id.into(), port: Arc::default() }
    }
}

impl Mmio for PanicPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        register::byte(at, 1)?;
        Ok((PANICKED | CRASH_LOADED).into())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        register::byte(at, 1)?;
        let event = value as u8;
        if event & PANICKED != 0 {
            self.panics.fetch_add(1, Ordering::Relaxed);
            return Ok(Effect::Vm(VmRequest::GuestPanic));
        }
        if event & CRASH_LOADED != 0 {
            self.crash_kernels.fetch_add(1, Ordering::Relaxed);
        }
        Ok(Effect::None)
    }
}

impl Device for Pvpanic {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(RegistersRequest::ports(REGISTERS, 1).fixed(0x505))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers(REGISTERS)?.answer(self.port.clone());
        Ok(NodeKind::Pvpanic)
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
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter(
            "panics",
            "Panics that the guest has reported.",
            self.port.panics.load(Ordering::Relaxed),
        );
        visitor.counter(
            "crash_kernels",
            "Crash kernels that the guest has reported to start.",
            self.port.crash_kernels.load(Ordering::Relaxed),
        );
    }
}

#[cfg(test)]
mod tests;
