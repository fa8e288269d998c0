//! What a virtual machine has from the start.

use ossature_boot::Numa;

use crate::arch::ArchConfig;
use crate::state::VcpuStateOf;
use crate::{KickSignal, VcpuState};

/// Where the interrupt controllers of a machine are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Irqchip {
    /// In the kernel. Halted vCPUs wait in the kernel too.
    #[default]
    Kernel,
    /// There are none: no interrupts, and one vCPU. For guests of a few instructions. On x86_64, HLT ends
    /// [`Vcpu::run_once`](crate::Vcpu::run_once) with [`Step::Halted`](crate::Step::Halted). On aarch64, WFI waits in the kernel
    /// for a kick: such guests end by PSCI, or by a device.
    None,
}

/// What a virtual machine has from the start: by default one vCPU, interrupt controllers in the kernel, no timer chip.
#[derive(Clone, Debug)]
pub struct VmConfig {
    pub(crate) cpus: u32,
    pub(crate) numa: Option<Numa>,
    pub(crate) irqchip: Irqchip,
    pub(crate) kick: KickSignal,
    pub(crate) dirty_ring: Option<u32>,
    pub(crate) arch: ArchConfig,
}

impl VmConfig {
    /// As many vCPUs as the guest is told about, from 1 up to [`Capabilities::max_vcpus`](crate::Capabilities::max_vcpus): one
    /// package with as many cores, or one for each of the [NUMA nodes](crate::machine::MachineBuilder::numa).
    pub fn new(cpus: u32) -> Self {
        Self {
            cpus,
            numa: None,
            irqchip: Irqchip::default(),
            kick: KickSignal::default(),
            dirty_ring: None,
            arch: ArchConfig::default(),
        }
    }

    /// With these interrupt controllers.
    #[must_use]
    pub fn irqchip(mut self, irqchip: Irqchip) -> Self {
        self.irqchip = irqchip;
        self
    }

    /// With another signal that interrupts a vCPU that runs.
    #[must_use]
    pub fn kick(mut self, kick: KickSignal) -> Self {
        self.kick = kick;
        self
    }

    /// With a ring of `entries` for each vCPU in which the kernel logs the pages that the guest writes, instead of a bitmap
    /// for each slot: what a [`GuestDirtyLog`](crate::GuestDirtyLog) costs then depends on how much the guest writes rather
    /// than on how much RAM it has. A power of two, from 1,024 up to
    /// [`Capabilities::dirty_ring`](crate::Capabilities::dirty_ring), which is 0 on aarch64: a machine with a ring is refused
    /// there.
    #[must_use]
    pub fn dirty_ring(mut self, entries: u32) -> Self {
        self.dirty_ring = Some(entries);
        self
    }

    /// Has vCPUs be as those that were in these states, by index.
    pub(crate) fn take_over(&mut self, vcpus: &[VcpuState]) {
        let parts = vcpus.iter().filter_map(|state| match &state.0 {
            VcpuStateOf::Kvm(parts) => Some(&**parts),
            VcpuStateOf::Scripted(_) => None,
        });
        self.arch.take_over(parts);
    }

    /// Returns true if the machine is to have interrupt controllers.
    pub(crate) fn has_irqchip(&self) -> bool {
        self.irqchip == Irqchip::Kernel
    }
}

impl Default for VmConfig {
    fn default() -> Self {
        Self::new(1)
    }
}
