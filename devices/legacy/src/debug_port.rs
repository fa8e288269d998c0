//! A port that stamps the time at which the guest wrote a byte, for boot times.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Syscall,
};

use crate::register::{self, REGISTERS};

/// A byte that the guest wrote, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The byte.
    pub value: u8,
    /// Time since the start that the VMM gave, by the monotonic clock.
    pub at: Duration,
}

/// An I/O port, 0x3f0 by default, that stamps each byte written with the time since the machine's start. A guest
/// made for Firecracker's boot timer writes 123 there when it has booted.
///
/// It keeps [`CAPACITY`](Self::CAPACITY) stamps until the VMM takes them; what the guest writes beyond that is only
/// counted.
pub struct DebugPort {
    id: String,
    base: u16,
    shared: Arc<StampLog>,
}

struct StampLog {
    start: Instant,
    on_stamp: Box<dyn Fn(Stamp) + Send + Sync>,
    record: Mutex<Record>,
}

#[derive(Default)]
struct Record {
    stamps: Vec<Stamp>,
    taken: u64,
    dropped: u64,
}

impl DebugPort {
    /// The number of stamps that are kept.
    pub const CAPACITY: usize = 256;
    /// The port by default.
    pub const DEFAULT_PORT: u16 = 0x3f0;

    /// A port named `id` at [`DEFAULT_PORT`](Self::DEFAULT_PORT) that counts the time from `start`.
    pub fn new(id: impl Into<String>, start: Instant) -> Self {
        Self::with_callback(id, start, Self::DEFAULT_PORT, |_| ())
    }

    /// The same at I/O port `port`, and `on_stamp` is called for each stamp that is kept. The vCPU that
    /// stamps calls it, so it must not wait.
    pub fn with_callback(
        id: impl Into<String>,
        start: Instant,
        port: u16,
        on_stamp: impl Fn(Stamp) + Send + Sync + 'static,
    ) -> Self {
        let shared = StampLog { start, on_stamp: Box::new(on_stamp), record: Mutex::default() };
        Self { id: id.into(), base: port, shared: Arc::new(shared) }
    }

    /// The stamps, for the VMM.
    pub fn stamps(&self) -> Stamps {
        Stamps(self.shared.clone())
    }
}

impl std::fmt::Debug for DebugPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DebugPort").field("id", &self.id).field("base", &self.base).finish_non_exhaustive()
    }
}

/// The stamps of a [`DebugPort`]: a clonable handle.
#[derive(Clone)]
pub struct Stamps(Arc<StampLog>);

impl std::fmt::Debug for Stamps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stamps")
    }
}

impl Stamps {
    /// Takes the stamps made since the last time, in their order. None before the device is attached; the last ones are
    /// kept when it is detached.
    pub fn take(&self) -> Vec<Stamp> {
        let mut record = self.0.record();
        record.taken += record.stamps.len() as u64;
        std::mem::take(&mut record.stamps)
    }
}

impl StampLog {
    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mmio for StampLog {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        register::byte(at, 1)?;
        Err(BusFault::WriteOnly)
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let stamp = Stamp { at: self.start.elapsed(), value: value as u8 };
        register::byte(at, 1)?;
        let mut record = self.record();
        if record.stamps.len() < DebugPort::CAPACITY {
            record.stamps.push(stamp);
            drop(record);
            (self.on_stamp)(stamp);
        } else {
            record.dropped += 1;
        }
        Ok(Effect::None)
    }
}

impl Device for DebugPort {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(RegistersRequest::ports(REGISTERS, 1).fixed(self.base.into()))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers(REGISTERS)?.answer(self.shared.clone());
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    /// The stamps stay: they are the VMM's, and the guest cannot see them.
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
        // Where the kernel's vDSO does not serve the clock.
        &[Syscall("clock_gettime")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let record = self.shared.record();
        visitor.counter(
            "stamps",
            "Times that the guest has stamped.",
            record.taken + record.stamps.len() as u64,
        );
        visitor.counter("dropped_stamps", "Stamps for which there was no room.", record.dropped);
    }
}

#[cfg(test)]
mod tests;
