//! What a virtual machine has on this architecture only.

use std::sync::Arc;

use super::cpuid::{Cpuid, CpuidError, CpuidHook};
use super::vcpu_state::VcpuParts;

/// The part of a [`VmConfig`](crate::VmConfig) that other architectures have not.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArchConfig {
    /// True if there is an i8254 timer.
    pub(crate) pit: bool,
    pub(super) cpuid: CpuidChoice,
}

/// Which CPUID vCPUs have.
#[derive(Clone, Debug, Default)]
pub(super) enum CpuidChoice {
    /// What the host offers.
    #[default]
    Host,
    /// The same, edited.
    Edited(CpuidHook),
    /// What others had, by index.
    Saved(Vec<Arc<Cpuid>>),
}

impl ArchConfig {
    /// Gives vCPUs the CPUID that those had which were in these states, by index.
    pub(crate) fn take_over<'a>(&mut self, vcpus: impl Iterator<Item = &'a VcpuParts>) {
        self.cpuid = CpuidChoice::Saved(vcpus.map(|parts| Arc::clone(&parts.cpuid)).collect());
    }
}

impl crate::VmConfig {
    /// With an i8254 timer, with [`Irqchip::Kernel`](crate::Irqchip::Kernel) only. Linux does without: it has the TSC
    /// deadline timer and kvmclock. On x86_64 only.
    #[must_use]
    pub fn pit(mut self) -> Self {
        self.arch.pit = true;
        self
    }

    /// With a CPUID that `edit` changes: it is called for each vCPU with what the vCPU would have (the host's, with the
    /// guest's topology, caches as the topology shares them) and with the vCPU's index, whenever one is created, its state
    /// is read or set, and at the first reset. It must do the same each time. For a machine that is restored from a
    /// snapshot it is not called: its vCPUs have the CPUID that they were saved with. On x86_64 only.
    ///
    /// ```
    /// use ossature_core::VmConfig;
    ///
    /// // The guest shall not see AVX-512 (leaf 7, EBX, bit 16).
    /// let config = VmConfig::new(2).cpuid(|cpuid, _| cpuid.update(7, 0, |leaf| leaf.ebx &= !(1 << 16)));
    /// ```
    #[must_use]
    pub fn cpuid(
        mut self,
        edit: impl Fn(&mut Cpuid, u32) -> Result<(), CpuidError> + Send + Sync + 'static,
    ) -> Self {
        self.arch.cpuid = CpuidChoice::Edited(CpuidHook(Arc::new(edit)));
        self
    }
}
