//! Your own device in a machine, and beside it one written for rust-vmm's vm-device.
//!
//! `cargo run --release --example custom_device` prints what the guest, a few instructions, copies from the first device to
//! the serial port, and how often it wrote to the second one.

#[cfg(target_arch = "aarch64")]
#[path = "custom_device/aarch64.rs"]
mod guest;
#[cfg(target_arch = "x86_64")]
#[path = "custom_device/x86_64.rs"]
mod guest;
#[cfg(target_arch = "aarch64")]
#[path = "platform/aarch64.rs"]
mod platform;
#[cfg(target_arch = "x86_64")]
#[path = "platform/x86_64.rs"]
mod platform;

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ossature::boot::Platform;
use ossature::bus::state::{Decoder, Encoder, Field, StateError};
use ossature::bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Size, Syscall,
};
use ossature::legacy::backend;
use ossature::memory::{GuestMmap, RamConfig};
use ossature::rust_vmm::vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use ossature::rust_vmm::vm_device::{FromVmDevice, MutDeviceMmio};
use ossature::vmm::machine::Machine;
use ossature::vmm::{Failure, Kvm};

/// Where the guest finds the greeter.
const GREETER: u64 = 0xd010_0000;
/// Where it finds the vm-device.
const TALLY: u64 = 0xd010_1000;

/// What a saved greeter is called, and its one field.
const KIND: &str = "org.example.greeter";
const NEXT: Field = Field::new(1, "next");

/// A device with one byte-wide register: each read gives the next byte of a message, then 0.
struct Greeter {
    registers: Arc<Greeting>,
}

struct Greeting {
    message: &'static [u8],
    next: AtomicUsize,
}

impl Mmio for Greeting {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        if at.size != Size::B1 {
            return Err(BusFault::Width);
        }
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        Ok(self.message.get(next).copied().unwrap_or(0).into())
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Err(BusFault::ReadOnly)
    }
}

impl Device for Greeter {
    fn id(&self) -> &str {
        "greeter"
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(RegistersRequest::memory("register", 1).fixed(GREETER))
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers("register")?.answer(self.registers.clone());
        Ok(NodeKind::Hidden) // the guest knows where it is
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(()) // it has no thread and nothing in flight
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.registers.next.store(0, Ordering::Relaxed);
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, 1);
        fields.u64(NEXT, self.registers.next.load(Ordering::Relaxed) as u64);
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=1)?;
        let next = fields.u64(NEXT)?;
        fields.finish()?;
        self.registers.next.store(next as usize, Ordering::Relaxed);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter(
            "reads",
            "Reads of the register.",
            self.registers.next.load(Ordering::Relaxed) as u64,
        );
    }
}

/// A device as rust-vmm's crates know them.
struct Tally(Arc<AtomicU64>);

impl MutDeviceMmio for Tally {
    fn mmio_read(&mut self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn mmio_write(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() -> Result<(), Failure> {
    let tally = Arc::new(AtomicU64::new(0));
    let foreign = Arc::new(Mutex::new(Tally(tally.clone())));
    let foreign = FromVmDevice::mmio("tally", MmioRange::new(MmioAddress(TALLY), 1)?, foreign);
    let message = b"a device of one's own says hello\n";
    let greeting = Arc::new(Greeting { message, next: AtomicUsize::new(0) });

    let machine = Machine::builder("custom")
        .memory(RamConfig::new(2 << 20))
        .payload(|memory: &GuestMmap, machine: &Platform| Ok(guest::load(memory, machine)?))
        .device(platform::serial(backend::stdio()?))
        .device(platform::power())
        .device(Greeter { registers: greeting })
        .device(foreign)
        .build(&Kvm::open()?)?;
    machine.start()?;
    let outcome = machine.wait()?;

    let written = tally.load(Ordering::Relaxed);
    writeln!(io::stdout(), "{outcome}; the vm-device counted {written} writes")?;
    assert_eq!(written, message.len() as u64);
    Ok(())
}
