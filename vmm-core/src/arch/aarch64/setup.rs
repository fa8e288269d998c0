//! How KVM's virtual machines and vCPUs are set up: only as far as a machine without vCPUs.

use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};

use super::registers::Registers;
use super::state::VcpuParts;
use crate::{Capability, VmConfig, VmError};

/// What a machine has on this architecture only: nothing.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArchConfig;

impl ArchConfig {
    /// There is nothing to take over.
    pub(crate) fn take_over<'a>(&mut self, _: impl Iterator<Item = &'a VcpuParts>) {}
}

/// What is asked of the host once: nothing yet.
#[derive(Debug, Default)]
pub(crate) struct HostFacts;

/// What a machine cannot be made without.
pub(crate) const REQUIRED: [(Capability, Cap); 5] = [
    (Capability::UserMemory, Cap::UserMemory),
    (Capability::IrqRouting, Cap::IrqRouting),
    (Capability::Irqfd, Cap::Irqfd),
    (Capability::Ioeventfd, Cap::Ioeventfd),
    (Capability::ImmediateExit, Cap::ImmediateExit),
];

/// The newest of them: a kernel that has it has the others.
pub(crate) const NEWEST: Cap = Cap::ImmediateExit;

/// There is nothing that a machine needs before anything else.
pub(crate) fn prepare_vm(_: &VmFd) -> Result<(), VmError> {
    Ok(())
}

/// No interrupt controllers exist before the vCPUs.
pub(crate) fn before_vcpus(_: &VmFd, config: &VmConfig) -> Result<(), VmError> {
    let ArchConfig = config.arch;
    Ok(())
}

/// The GIC is created after all vCPUs.
pub(crate) fn after_vcpus(_: &VmFd, _: &VmConfig) -> Result<(), VmError> {
    Err(VmError::Unsupported { what: "an interrupt controller on this architecture" })
}

pub(crate) fn init_vcpu(_: &VcpuFd, _: u32, _: (&Kvm, &HostFacts), config: &VmConfig) -> Result<(), VmError> {
    let ArchConfig = &config.arch;
    Err(VmError::Unsupported { what: "a vCPU on this architecture" })
}

pub(crate) fn notify_paused(_: &VcpuFd) -> Result<(), VmError> {
    Err(VmError::Unsupported { what: "telling guests of pauses on this architecture" })
}

/// The host does not translate addresses for us.
pub(crate) fn instruction_byte(_: &VcpuFd, _: &Registers, _: u64) -> Option<u64> {
    None
}
