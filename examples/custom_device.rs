//! Your own device in a machine, and beside it one written for rust-vmm's vm-device.
//!
//! `cargo run --release --example custom_device` prints what the guest, a few bytes of real-mode code, copies from
//! the first device to the serial port, and how often it wrote to the second one.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use ossature::bus::adapters::FromVmDevice;
use ossature::bus::state::{Decoder, Encoder, Field, StateError};
use ossature::bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    NodeKind, RegistersRequest, Requires, Size, Syscall,
};
use ossature::legacy::{AcpiPower, Serial, SerialPort, backend};
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::vmm::machine::Machine;
use ossature::vmm::{Failure, Kvm, Registers};
use vm_device::MutDevicePio;
use vm_device::bus::{PioAddress, PioAddressOffset, PioRange};

/// Copies bytes from port 0x700 to ports 0x3f8 and 0x710 until it reads 0, then powers off.
const GUEST: &[u8] = &[
    0xba, 0x00, 0x07, // next: mov dx, 0x700
    0xec, //                   in al, dx
    0x84, 0xc0, //             test al, al
    0x74, 0x0a, //             jz done
    0xba, 0xf8, 0x03, //       mov dx, 0x3f8
    0xee, //                   out dx, al
    0xba, 0x10, 0x07, //       mov dx, 0x710
    0xee, //                   out dx, al
    0xeb, 0xee, //             jmp next
    0xba, 0x00, 0x06, // done: mov dx, 0x600
    0xb0, 0x34, //             mov al, 0x34 (S5, sleep enable)
    0xee, //                   out dx, al
    0xf4, //                   hlt
];

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
        Requires::new().registers(RegistersRequest::ports("register", 1).fixed(0x700))
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
        visitor.counter("reads", self.registers.next.load(Ordering::Relaxed) as u64);
    }
}

/// A device as rust-vmm's crates know them.
struct Tally(Arc<AtomicU64>);

impl MutDevicePio for Tally {
    fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        data.fill(0);
    }

    fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, _: &[u8]) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn main() -> Result<(), Failure> {
    let tally = Arc::new(AtomicU64::new(0));
    let foreign = Arc::new(Mutex::new(Tally(tally.clone())));
    let foreign = FromVmDevice::pio("tally", PioRange::new(PioAddress(0x710), 1)?, foreign);
    let message = b"a device of one's own says hello\n";
    let greeting = Arc::new(Greeting { message, next: AtomicUsize::new(0) });

    let machine = Machine::builder("custom")
        .payload(|memory: &ossature::memory::GuestMmap, _: &ossature::boot::Platform| {
            memory.write_slice(GUEST, GuestAddress(0x1000))?;
            Ok(Registers::real_mode(0x1000))
        })
        .device(Serial::new("com1", SerialPort::COM1, backend::stdio()?))
        .device(AcpiPower::new("power"))
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
