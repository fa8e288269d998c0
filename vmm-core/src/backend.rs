//! What a hypervisor does for a machine: the traits that KVM and the scripted back end implement.

use std::fmt::Debug;
use std::sync::Arc;

use ossature_bus::{Event, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RegisterPage};

use crate::{Buses, KickSignal, Kicker, Registers, StatsReader, Step, Vcpu, VcpuError, VmError};

pub(crate) mod sealed {
    /// Keeps the traits of this module to this crate, so that they can grow.
    pub trait Sealed {}
}

/// Where the interrupt controllers of a machine are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Irqchip {
    /// In the kernel. Halted vCPUs wait in the kernel too.
    #[default]
    Kernel,
    /// There are none: no interrupts, one vCPU, and HLT ends [`Vcpu::run_once`] with [`Step::Halted`]. For
    /// guests of a few instructions.
    None,
}

/// What a virtual machine has from the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmConfig {
    /// How many vCPUs the guest is told about, from 1: one package with as many cores.
    pub cpus: u32,
    /// Interrupt controllers.
    pub irqchip: Irqchip,
    /// Whether there is an i8254 timer (x86, with [`Irqchip::Kernel`]). Linux does without: it has the TSC
    /// deadline timer and kvmclock.
    pub pit: bool,
    /// What interrupts a vCPU that runs.
    pub kick: KickSignal,
}

impl Default for VmConfig {
    fn default() -> Self {
        Self { cpus: 1, irqchip: Irqchip::default(), pit: false, kick: KickSignal::default() }
    }
}

/// A write by the guest that wakes somebody up without leaving the kernel (an ioeventfd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Doorbell {
    /// Where.
    pub address: DoorbellAddress,
    /// Width of the write. With a memory address and no value, writes of any width ring: KVM then need not
    /// decode the guest's instruction.
    pub size: Size,
    /// The value that must be written; `None` for any.
    pub value: Option<u64>,
}

/// Address of a [`Doorbell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DoorbellAddress {
    /// An I/O port.
    Pio(u16),
    /// Guest-physical memory.
    Mmio(u64),
}

/// A message-signalled interrupt: what a device writes where (PCI 3.0, section 6.8).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsiMessage {
    /// Address.
    pub address: u64,
    /// Data.
    pub data: u32,
}

/// A way to get virtual machines. [`Kvm`](crate::Kvm) is the real one, a [`Script`](crate::scripted::Script)
/// stands in for it in tests.
pub trait Hypervisor: Debug + Send + Sync + sealed::Sealed {
    /// A new, empty virtual machine.
    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError>;
}

/// A virtual machine: RAM, interrupts, doorbells and vCPUs. Everything is released when it and its vCPUs
/// are dropped. The methods can be called from any thread; they are for setting up, not for hot paths.
pub trait Vm: Debug + Send + Sync + sealed::Sealed {
    /// Gives the guest its RAM, once. The memory stays mapped until the machine and its vCPUs are gone.
    fn set_memory(&self, ram: &Ram) -> Result<(), VmError>;

    /// Lets the guest read `page` at `address` without an exit; writes reach the bus. `Ok(false)` where the
    /// host cannot: reads then reach the bus too.
    fn map_register_page(&self, address: GuestAddress, page: Arc<RegisterPage>) -> Result<bool, VmError>;

    /// Connects an event to interrupt line `gsi`: each signal raises an edge.
    fn irqfd(&self, event: &Arc<Event>, gsi: u32) -> Result<(), VmError>;

    /// Connects a guest's write to an event: it signals, and the vCPU goes on.
    fn ioeventfd(&self, event: &Arc<Event>, doorbell: Doorbell) -> Result<(), VmError>;

    /// Allocates an interrupt line that sends `message`, for [`irqfd`](Self::irqfd).
    fn add_msi_route(&self, message: MsiMessage) -> Result<u32, VmError>;

    /// Changes what the line `gsi`, got from [`add_msi_route`](Self::add_msi_route), sends.
    fn set_msi_route(&self, gsi: u32, message: MsiMessage) -> Result<(), VmError>;

    /// Creates vCPU `index`, from 0, with its view of the buses. vCPU 0 starts to run; the others wait until
    /// the guest starts them, where the machine has interrupt controllers.
    fn create_vcpu(&self, index: u32, buses: Buses) -> Result<Vcpu, VmError>;

    /// Switches the log of pages that the guest writes on or off.
    fn set_dirty_log(&self, on: bool) -> Result<(), VmError>;

    /// Takes the log: calls `visit` for each slot of RAM with its first address and a bitmap of the base pages
    /// that were written since the log was switched on or last taken, lowest bit first. Pages that KVM has only
    /// made writable may be among them.
    fn take_dirty_log(&self, visit: &mut dyn FnMut(GuestAddress, &[u64])) -> Result<(), VmError>;

    /// The hypervisor's own counters of this machine.
    fn stats_reader(&self) -> Result<StatsReader, VmError>;
}

/// A vCPU as a back end makes it; [`Vcpu`] adds the buses.
pub(crate) trait VcpuBackend: Debug + Send {
    /// See [`Vcpu::run_once`].
    fn run_once(&mut self, buses: &mut Buses) -> Result<Step, VcpuError>;
    /// See [`Vcpu::kicker`].
    fn kicker(&self) -> Kicker;
    /// See [`Vcpu::registers`].
    fn registers(&self) -> Result<Registers, VmError>;
    /// See [`Vcpu::set_registers`].
    fn set_registers(&mut self, registers: &Registers) -> Result<(), VmError>;
    /// See [`Vcpu::stats_reader`].
    fn stats_reader(&self) -> Result<StatsReader, VmError>;
}
