//! What a hypervisor does for a machine: the traits that KVM and the scripted back end implement.

use std::fmt::Debug;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ossature_boot::{Caches, Numa};
use ossature_bus::{AddressSpace, Event, MsiMessage, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RegisterPage};

use crate::{
    Buses, GuestDirtyLog, Ioeventfd, Irqfd, Kicker, MemorySlot, MsiRoute, Registers, StatsReader, Step, Vcpu,
    VcpuError, VcpuState, VmConfig, VmError, VmState,
};

pub(crate) mod sealed {
    /// Keeps the traits of this module to this crate, so that they can grow.
    pub trait Sealed {}
}

/// A write by the guest that signals an event without leaving the kernel (an ioeventfd).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Doorbell {
    /// Where.
    pub address: DoorbellAddress,
    /// Width of the write. With no value, writes of any width ring: KVM then need not decode the guest's
    /// instruction.
    pub size: Size,
    /// The value that must be written; `None` for any.
    pub value: Option<u64>,
}

impl Doorbell {
    /// A doorbell at `address` that a write of `size` and `value` rings, or any write where there is no value.
    pub fn new(address: DoorbellAddress, size: Size, value: Option<u64>) -> Self {
        Self { address, size, value }
    }
}

/// Address of a [`Doorbell`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DoorbellAddress {
    /// An I/O port.
    Pio(u16),
    /// Guest-physical memory.
    Mmio(u64),
}

/// A way to get virtual machines. [`Kvm`](crate::Kvm) is the real one, a [`Script`](crate::scripted::Script)
/// stands in for it in tests.
pub trait Hypervisor: Debug + Send + Sync + sealed::Sealed {
    /// A new, empty virtual machine.
    fn create_vm(&self, config: &VmConfig) -> Result<Box<dyn Vm>, VmError>;

    /// The bits of guest-physical addresses that a machine of [`create_vm`](Self::create_vm) can have: on aarch64 what the
    /// host's processor translates (`KVM_CAP_ARM_VM_IPA_SIZE`); on x86_64 as many as there are.
    fn address_bits(&self) -> u32;

    /// Fails if no vCPUs of a machine of `config` can be in these states here, by index: if the host's processor or its
    /// kernel lacks a feature that they have. Changes nothing.
    fn check_states(&self, config: &VmConfig, vcpus: &[VcpuState]) -> Result<(), VmError>;
}

/// A virtual machine: RAM, interrupts, doorbells and vCPUs. Everything is released when it and its vCPUs
/// are dropped. The methods can be called from any thread; they are for setting up, not for hot paths.
pub trait Vm: Debug + Send + Sync + sealed::Sealed {
    /// Returns true if its guest can reach I/O ports: a scripted one can, one of KVM's where the processor has instructions
    /// for it.
    fn has_ports(&self) -> bool;

    /// Gives the guest its RAM, once. Slots that are added to it and removed from it later come and go for the guest too,
    /// for as long as this value lives. The memory stays mapped until the machine and its vCPUs are gone.
    fn set_memory(&self, ram: &Ram) -> Result<(), VmError>;

    /// Lets the guest read `page` at `address` without an exit for as long as the slot lives; writes reach the bus.
    /// `None` where the host cannot: reads then reach the bus too.
    fn map_register_page(
        &self,
        address: GuestAddress,
        page: &Arc<RegisterPage>,
    ) -> Result<Option<MemorySlot>, VmError>;

    /// Connects an event to interrupt line `gsi`: each signal raises an edge. With `resample`, a signal asserts the
    /// level line until the guest acknowledges it, which signals `resample` and deasserts the line.
    fn irqfd(&self, event: &Arc<Event>, gsi: u32, resample: Option<&Arc<Event>>) -> Result<Irqfd, VmError>;

    /// Makes sure that there is an interrupt line `gsi`, for [`raise_edge`](Self::raise_edge).
    fn check_edge_line(&self, gsi: u32) -> Result<(), VmError>;

    /// Raises an edge of line `gsi`, without an event.
    fn raise_edge(&self, gsi: u32) -> Result<(), VmError>;

    /// Asserts or deasserts level line `gsi`.
    fn set_irq_line(&self, gsi: u32, asserted: bool) -> Result<(), VmError>;

    /// Connects a guest's write to an event: it signals, and the vCPU goes on.
    fn ioeventfd(&self, event: &Arc<Event>, doorbell: Doorbell) -> Result<Ioeventfd, VmError>;

    /// Returns true if messages can be interrupts, as functions of PCI send them: not where the host offers its guests nothing
    /// but a GICv2.
    fn has_messages(&self) -> bool;

    /// Allocates an interrupt line that sends `message`, for [`irqfd`](Self::irqfd).
    fn add_msi_route(&self, message: MsiMessage) -> Result<MsiRoute, VmError>;

    /// Creates vCPU `index`, from 0, with its view of the buses. vCPU 0 starts to run; the others wait until
    /// the guest starts them, where the machine has interrupt controllers.
    fn create_vcpu(&self, index: u32, buses: Buses) -> Result<Vcpu, VmError>;

    /// Starts to log the pages of the machine's RAM that vCPUs and this process write, with all pages clean. One log at a
    /// time. Writes that run at the same time may be missed: start while the machine is paused, or treat all RAM as dirty
    /// once afterwards.
    fn dirty_log(&self, ram: &Ram) -> Result<GuestDirtyLog, VmError>;

    /// The state of what the hypervisor itself has of the machine: interrupt controllers, timer, clock. The vCPUs must
    /// be paused. What of it is in guest memory, as the tables of an ITS are, is written there: copy memory afterwards.
    fn state(&self) -> Result<VmState, VmError>;

    /// Goes back to a state of this machine, or one of the same configuration; the guest's clock too. The vCPUs must be
    /// paused, and get their states afterwards. Guest memory has to be what it was before, each time anew. After an error,
    /// the machine has to be reset.
    fn set_state(&self, state: &VmState) -> Result<(), VmError>;

    /// Resets interrupt controllers and timer, as power-on does. The guest's clock goes on. The vCPUs must be paused.
    /// Connections stay; a level line that a device asserts still is.
    fn reset(&self) -> Result<(), VmError>;

    /// As [`Hypervisor::address_bits`].
    fn address_bits(&self) -> u32;

    /// Returns true if vCPUs have performance monitors with an interrupt that the guest has to be told of, as on aarch64.
    fn has_performance_monitors(&self) -> bool;

    /// The NUMA nodes that it has been configured with, if any.
    fn numa(&self) -> Option<Numa>;

    /// The caches that the guest has to be told of, as on aarch64, if they are known.
    fn caches(&self) -> Option<Caches>;

    /// The descriptor of the virtual machine, for what this crate has no method for; `None` where there is none, as in
    /// a scripted machine.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

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
    /// See [`Vcpu::state`].
    fn state(&mut self, buses: &mut Buses) -> Result<VcpuState, VmError>;
    /// See [`Vcpu::set_state`].
    fn set_state(&mut self, state: &VcpuState, buses: &mut Buses) -> Result<(), VmError>;
    /// See [`Vcpu::reset`].
    fn reset(&mut self, buses: &mut Buses) -> Result<(), VmError>;
    /// See [`Vcpu::notify_paused`].
    fn notify_paused(&self) -> Result<(), VmError>;
    /// See [`Vcpu::last_access`].
    fn last_access(&self) -> Option<(AddressSpace, u64)>;
    /// See [`Vcpu::descriptor`].
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;
    /// See [`Vcpu::stats_reader`].
    fn stats_reader(&self) -> Result<StatsReader, VmError>;
}
