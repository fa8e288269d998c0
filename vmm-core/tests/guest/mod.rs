//! A guest of a few instructions on this machine's KVM, and a device that remembers its accesses. What the instructions
//! are is in a file for each architecture, under the same names.
#![allow(clippy::unwrap_used, clippy::panic, dead_code)] // a test's helpers may panic; each test binary uses some of them

#[cfg_attr(target_arch = "x86_64", path = "x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "aarch64.rs")]
mod code;

use std::sync::{Arc, Mutex};

pub use code::*;

use ossature_boot::Platform;
use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, Mmio, Size, VmRequest};
use ossature_core::machine::{Machine, MachineBuilder};
use ossature_core::{Buses, Hypervisor, Irqchip, Kvm, Registers, Step, Vcpu, Vm, VmConfig};
use ossature_memory::vm_memory::{Bytes, GuestAddress};
use ossature_memory::{GuestMmap, Ram, RamConfig};

/// Where code goes.
pub const CODE: u16 = 0x1000;
/// Where data goes.
pub const DATA: u64 = 0x2000;
/// A page of registers that are answered, above all RAM.
pub const MMIO: u64 = 0xd000_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Read(u64, Size),
    Write(u64, Size, u64),
}

/// Answers everything: a read gives bytes that count up from 0x11, each access is remembered.
#[derive(Default)]
pub struct Recorder(Mutex<Vec<Seen>>);

/// What a read of `size` gives.
pub fn pattern(size: Size) -> u64 {
    0x8877_6655_4433_2211 & size.mask()
}

impl Recorder {
    pub fn take(&self) -> Vec<Seen> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    /// Returns true if it is among those that have not been taken.
    pub fn seen(&self, seen: Seen) -> bool {
        self.0.lock().unwrap().contains(&seen)
    }
}

impl Mmio for Recorder {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        self.0.lock().unwrap().push(Seen::Read(at.offset, at.size));
        Ok(pattern(at.size))
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        self.0.lock().unwrap().push(Seen::Write(at.offset, at.size, value));
        Ok(Effect::None)
    }
}

/// Has a run of a guest end whose processor has no instruction for it: see [`halts`].
struct Halt;

impl Mmio for Halt {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Ok(0)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::Vm(VmRequest::Shutdown))
    }
}

/// Where it is.
pub const HALT: u64 = 0xd100_0000;

/// Runs to the end of a run; returns how many other exits there were.
pub fn run_to_halt(vcpu: &mut Vcpu) -> usize {
    let mut exits = 0;
    loop {
        match vcpu.run_once().unwrap() {
            Step::Handled => exits += 1,
            step if halts(step) => {
                complete(vcpu);
                return exits;
            }
            step => panic!("{step:?}"),
        }
    }
}

pub struct Guest {
    pub vm: Box<dyn Vm>,
    pub ram: Ram,
    pub ports: Arc<Recorder>,
    pub memory: Arc<Recorder>,
    buses: (Bus, Bus),
}

impl Guest {
    /// 64 KiB of RAM with `code`, and recorders on all ports and on the page at [`MMIO`].
    pub fn new(config: VmConfig, code: &[Unit]) -> Self {
        let vm = Kvm::open().unwrap().create_vm(&config).unwrap();
        let ram = Ram::new(&RamConfig::new(0x1_0000)).unwrap();
        ram.dma().write(GuestAddress(CODE.into()), &bytes(code)).unwrap();
        keep(&ram);
        vm.set_memory(&ram).unwrap();
        let (ports, memory) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let buses = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
        buses.0.insert(0, 0x1_0000, "ports", ports.clone()).unwrap();
        buses.1.insert(MMIO, 0x1000, "memory", memory.clone()).unwrap();
        buses.1.insert(HALT, 8, "halt", Arc::new(Halt)).unwrap();
        Self { vm, ram, ports, memory, buses }
    }

    /// As [`new`](Self::new), without interrupt controllers.
    pub fn bare(code: &[Unit]) -> Self {
        Self::new(VmConfig::default().irqchip(Irqchip::None), code)
    }

    /// Another view of its buses.
    pub fn buses(&self) -> Buses {
        Buses::new(self.buses.0.cursor(), self.buses.1.cursor())
    }

    /// vCPU `index` at [`CODE`].
    pub fn vcpu(&self, index: u32) -> Vcpu {
        self.vcpu_with(index, start())
    }

    /// vCPU `index` with these registers.
    pub fn vcpu_with(&self, index: u32, registers: Registers) -> Vcpu {
        let mut vcpu = self.vm.create_vcpu(index, self.buses()).unwrap();
        vcpu.set_registers(&ready(registers)).unwrap();
        vcpu
    }

    pub fn read<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.ram.dma().read(GuestAddress(address), &mut bytes).unwrap();
        bytes
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.dma().write(GuestAddress(address), bytes).unwrap();
    }
}

/// A machine of 2 MiB with `code`.
pub fn machine(name: &str, code: &'static [Unit]) -> MachineBuilder {
    Machine::builder(name).memory(RamConfig::new(2 << 20)).payload(move |memory: &GuestMmap, _: &Platform| {
        memory.write_slice(&bytes(code), GuestAddress(CODE.into()))?;
        Ok(start())
    })
}

/// What [`COUNT`] counts.
pub fn counter(machine: &Machine) -> u32 {
    machine.ram().dma().read_obj(GuestAddress(DATA)).unwrap()
}
