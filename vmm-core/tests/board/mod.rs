//! Machines of a few instructions on this machine's KVM, and a device that is put together from parts.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)] // helpers of tests may panic; each test binary uses some

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ossature_boot::Platform;
use ossature_bus::state::StateError;
use ossature_bus::{
    Assigned, Device, DeviceError, DeviceState, Handover, MetricVisitor, Mmio, NodeKind, Requires, Syscall,
};
use ossature_core::Registers;
use ossature_core::machine::{Machine, MachineBuilder};
use ossature_memory::vm_memory::{Bytes, GuestAddress};
use ossature_memory::{GuestMmap, RamConfig};

/// Where code goes.
pub const CODE: u16 = 0x1000;
/// Where the second vCPU starts, in the guests that [`START_SECOND`] begins.
pub const SECOND: u64 = 0x2000;
/// Where interrupt handlers go.
pub const HANDLER: u16 = 0x3000;
/// Where the segment register FS points: devices.
pub const DEVICES: u64 = 0xd800_0000;
/// Where the segment register GS points.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Where the segment register ES points.
pub const LAPIC: u64 = 0xfee0_0000;

/// Local APIC on; to APIC 1: INIT, and start at [`SECOND`].
pub const START_SECOND: &[u8] = &[
    0x26, 0x66, 0xc7, 0x06, 0xf0, 0x00, 0xff, 0x01, 0x00, 0x00, // mov dword es:[0xf0], 0x1ff
    0x26, 0x66, 0xc7, 0x06, 0x10, 0x03, 0x00, 0x00, 0x00, 0x01, // mov dword es:[0x310], 1 << 24
    0x26, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x00, 0x45, 0x00, 0x00, // mov dword es:[0x300], 0x4500
    0x26, 0x66, 0xc7, 0x06, 0x00, 0x03, 0x02, 0x46, 0x00, 0x00, // mov dword es:[0x300], 0x4602
];

/// Real mode at `ip`, with a stack, DS at `data`, FS at devices, GS at the I/O APIC and ES at the local APIC.
pub fn registers(ip: u16, data: u64) -> Registers {
    let mut registers = Registers::real_mode(ip);
    registers.rsp = 0x8000;
    registers.ds.base = data;
    registers.fs.base = DEVICES;
    registers.gs.base = IOAPIC;
    registers.es.base = LAPIC;
    registers
}

/// A machine of 512 KiB with these pieces of code; vCPU 0 starts at [`CODE`].
pub fn guest(name: &str, code: &[(u64, &[u8])]) -> MachineBuilder {
    let code: Vec<(u64, Vec<u8>)> = code.iter().map(|(at, code)| (*at, code.to_vec())).collect();
    Machine::builder(name).memory(RamConfig::new(0x8_0000)).payload(
        move |memory: &GuestMmap, _: &Platform| {
            for (at, code) in &code {
                memory.write_slice(code, GuestAddress(*at))?;
            }
            Ok(registers(CODE, 0))
        },
    )
}

/// The number at `address` of the guest's memory.
pub fn number(machine: &Machine, address: u64) -> u32 {
    machine.ram().dma().read_obj(GuestAddress(address)).unwrap()
}

/// Waits until `what` has happened. One that never happens fails after two minutes.
pub fn until(machine: &Machine, what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert_eq!(machine.outcome(), None, "{what}");
        assert!(start.elapsed() < Duration::from_secs(120), "{what} does not happen");
        std::thread::yield_now();
    }
}

/// One test at a time: they count what the process has.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

type Answer = Arc<dyn Fn(&Assigned) -> Arc<dyn Mmio> + Send + Sync>;

/// A device that asks for `requires`, and whose registers are all answered by the same. It counts its resets.
#[derive(Clone)]
pub struct Part {
    id: &'static str,
    requires: Requires,
    answer: Answer,
    pub assigned: Arc<Mutex<Option<Assigned>>>,
    pub resets: Arc<AtomicU32>,
    on_reset: Arc<dyn Fn() + Send + Sync>,
}

impl Part {
    pub fn new<M: Mmio + 'static>(
        id: &'static str,
        requires: Requires,
        answer: impl Fn(&Assigned) -> M + Send + Sync + 'static,
    ) -> Self {
        Self {
            id,
            requires,
            answer: Arc::new(move |assigned| Arc::new(answer(assigned))),
            assigned: Arc::default(),
            resets: Arc::default(),
            on_reset: Arc::new(|| ()),
        }
    }

    /// With something to be done at each reset.
    pub fn on_reset(mut self, on_reset: impl Fn() + Send + Sync + 'static) -> Self {
        self.on_reset = Arc::new(on_reset);
        self
    }

    /// What it was assigned.
    pub fn assigned(&self) -> Assigned {
        self.assigned.lock().unwrap().clone().unwrap()
    }
}

impl Device for Part {
    fn id(&self) -> &str {
        self.id
    }

    fn requires(&self) -> Requires {
        self.requires.clone()
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let port = (self.answer)(&assigned);
        for registers in assigned.all_registers() {
            registers.answer(Arc::clone(&port));
        }
        *self.assigned.lock().unwrap() = Some(assigned);
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.resets.fetch_add(1, Ordering::SeqCst);
        (self.on_reset)();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "it has none" })
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        *self.assigned.lock().unwrap() = None;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}
