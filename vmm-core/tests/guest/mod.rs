//! A guest of a few instructions on this machine's KVM, and a device that remembers its accesses.
#![allow(clippy::unwrap_used, dead_code)] // a test's helpers may panic; each test binary uses some of them

use std::sync::{Arc, Mutex};

use ossature_bus::{Access, AddressSpace, Bus, BusFault, Effect, Mmio, Size};
use ossature_core::{Buses, Hypervisor, Irqchip, Kvm, Registers, Vcpu, Vm, VmConfig};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RamConfig};

/// Where code goes.
pub const CODE: u16 = 0x1000;
/// Where data goes.
pub const DATA: u64 = 0x2000;
/// Where the segment register FS points, above all RAM.
pub const MMIO: u64 = 0xd000_0000;
/// The local APIC.
pub const LAPIC: u64 = 0xfee0_0000;

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

pub struct Guest {
    pub vm: Box<dyn Vm>,
    pub ram: Ram,
    pub ports: Arc<Recorder>,
    pub memory: Arc<Recorder>,
    buses: (Bus, Bus),
}

impl Guest {
    /// 64 KiB of RAM with `code`, and recorders on all ports and on the page at [`MMIO`].
    pub fn new(config: VmConfig, code: &[u8]) -> Self {
        let vm = Kvm::open().unwrap().create_vm(&config).unwrap();
        let ram = Ram::new(&RamConfig::new(0x1_0000)).unwrap();
        ram.dma().write(GuestAddress(CODE.into()), code).unwrap();
        vm.set_memory(&ram).unwrap();
        let (ports, memory) = (Arc::new(Recorder::default()), Arc::new(Recorder::default()));
        let buses = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
        buses.0.insert(0, 0x1_0000, "ports", ports.clone()).unwrap();
        buses.1.insert(MMIO, 0x1000, "memory", memory.clone()).unwrap();
        Self { vm, ram, ports, memory, buses }
    }

    /// As [`new`](Self::new), without interrupt controllers: HLT ends a run.
    pub fn bare(code: &[u8]) -> Self {
        Self::new(VmConfig::default().irqchip(Irqchip::None), code)
    }

    /// Another view of its buses.
    pub fn buses(&self) -> Buses {
        Buses::new(self.buses.0.cursor(), self.buses.1.cursor())
    }

    /// vCPU `index` in real mode at [`CODE`].
    pub fn vcpu(&self, index: u32) -> Vcpu {
        self.vcpu_with(index, Registers::real_mode(CODE))
    }

    /// vCPU `index` with these registers, and FS at [`MMIO`] unless it is elsewhere.
    pub fn vcpu_with(&self, index: u32, mut registers: Registers) -> Vcpu {
        let mut vcpu = self.vm.create_vcpu(index, self.buses()).unwrap();
        if registers.fs.base == 0 {
            registers.fs.base = MMIO;
        }
        vcpu.set_registers(&registers).unwrap();
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
