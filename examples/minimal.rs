//! The least that runs a guest: RAM, one device, one vCPU, and a loop. No machine builder, no threads.
//!
//! The guest is a few instructions in real mode that print one line on the first serial port and halt:
//! `cargo run --release --example minimal`. It needs `/dev/kvm`.

use std::io::{self, Write};
use std::sync::Arc;

use ossature::bus::{Access, AddressSpace, Bus, BusFault, Effect, Mmio, Size};
use ossature::memory::vm_memory::GuestAddress;
use ossature::memory::{Ram, RamConfig};
use ossature::vmm::{Buses, Failure, Hypervisor, Irqchip, Kvm, Registers, Step, VmConfig};

/// Where the guest finds its code and its line.
const CODE: u16 = 0x1000;
const LINE: u16 = 0x2000;

/// What it prints.
const TEXT: &[u8] = b"Hello from the guest!\n";

/// The first serial port of a PC.
const COM1: u16 = 0x3f8;

/// The guest, assembled by hand.
fn code() -> Vec<u8> {
    let mut code = vec![0xba]; // mov dx, COM1
    code.extend(COM1.to_le_bytes());
    code.push(0xbe); // mov si, LINE
    code.extend(LINE.to_le_bytes());
    code.push(0xb9); // mov cx, the length of TEXT
    code.extend((TEXT.len() as u16).to_le_bytes());
    code.extend([0xf3, 0x6e]); // rep outsb: CX bytes from SI to port DX
    code.push(0xf4); // hlt
    code
}

/// A serial port with nothing but its data register: what is written there goes to our standard output.
struct SerialOutput;

impl Mmio for SerialOutput {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Err(BusFault::WriteOnly)
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        if at.size != Size::B1 {
            return Err(BusFault::Width);
        }
        // The guest cannot do anything about a closed pipe.
        let _ = io::stdout().write_all(&[value as u8]);
        Ok(Effect::None)
    }
}

fn main() -> Result<(), Failure> {
    // A virtual machine without interrupt controllers, so that HLT comes back to us.
    let vm = Kvm::open()?.create_vm(&VmConfig::default().irqchip(Irqchip::None))?;

    // 64 KiB of RAM, with the guest in it.
    let ram = Ram::new(&RamConfig::new(0x1_0000))?;
    ram.dma().write(GuestAddress(CODE.into()), &code())?;
    ram.dma().write(GuestAddress(LINE.into()), TEXT)?;
    vm.set_memory(&ram)?;

    // Two address spaces with devices: ports, with our serial port, and memory, with none.
    let ports = Bus::new(AddressSpace::Pio);
    ports.insert(COM1.into(), 1, "serial", Arc::new(SerialOutput))?;
    let memory = Bus::new(AddressSpace::Mmio);

    // A vCPU that begins at our code, and sees both.
    let mut vcpu = vm.create_vcpu(0, Buses::new(ports.cursor(), memory.cursor()))?;
    vcpu.set_registers(&Registers::real_mode(CODE))?;

    // Each step is one exit from the guest; the vCPU has the bus answer the guest's accesses.
    loop {
        match vcpu.run_once()? {
            Step::Handled | Step::Interrupted => {}
            Step::Halted => return Ok(()),
            step => return Err(format!("nobody here can do {step:?}").into()),
        }
    }
}
