//! The least that runs a guest: RAM, one device, one vCPU, and a loop. No machine builder, no threads.
//!
//! The guest is a few instructions that print one line on a serial port and end, in a module for each architecture:
//! `cargo run --release --example minimal`. It needs `/dev/kvm`.

#[cfg(target_arch = "aarch64")]
#[path = "minimal/aarch64.rs"]
mod guest;
#[cfg(target_arch = "x86_64")]
#[path = "minimal/x86_64.rs"]
mod guest;

use std::io::{self, Write};
use std::sync::Arc;

use ossature::bus::{Access, AddressSpace, Bus, BusFault, Effect, Mmio, Size};
use ossature::memory::vm_memory::GuestAddress;
use ossature::memory::{Ram, RamConfig};
use ossature::vmm::{Buses, Failure, Hypervisor, Irqchip, Kvm, Step, VmConfig};

/// Where the guest finds its code and its line.
const CODE: u16 = 0x1000;
const LINE: u16 = 0x2000;

/// What it prints.
const TEXT: &[u8] = b"Hello from the guest!\n";

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
    // A virtual machine without interrupt controllers, so that a guest that halts comes back to us.
    let vm = Kvm::open()?.create_vm(&VmConfig::default().irqchip(Irqchip::None))?;

    // 64 KiB of RAM, with the guest in it.
    let ram = Ram::new(&RamConfig::new(0x1_0000))?;
    ram.dma().write(GuestAddress(CODE.into()), &guest::code())?;
    ram.dma().write(GuestAddress(LINE.into()), TEXT)?;
    vm.set_memory(&ram)?;

    // Two address spaces with devices, one of them with our serial port: ports, if the architecture has any, and memory.
    let ports = Bus::new(AddressSpace::Pio);
    let memory = Bus::new(AddressSpace::Mmio);
    guest::plug(&ports, &memory, Arc::new(SerialOutput))?;

    // A vCPU that begins at our code, and sees both.
    let mut vcpu = vm.create_vcpu(0, Buses::new(ports.cursor(), memory.cursor()))?;
    vcpu.set_registers(&guest::start())?;

    // Each step is one exit from the guest; the vCPU has the bus answer the guest's accesses.
    loop {
        match vcpu.run_once()? {
            Step::Handled | Step::Interrupted => {}
            step if guest::ends(step) => return Ok(()),
            step => return Err(format!("nobody here can do {step:?}").into()),
        }
    }
}
