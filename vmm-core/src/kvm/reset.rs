//! The state of a machine before it ever ran.

use kvm_ioctls::VmFd;

use super::host::Host;
use crate::arch::{self, VcpuAccess, VcpuParts, VmParts};
use crate::call::{call, retry};
use crate::{VmConfig, VmError};

/// The state in which KVM makes a machine, which is not asked for when machines start: it is read from a second one of
/// the same configuration when somebody resets the first.
#[derive(Debug)]
pub(super) struct ResetState {
    pub(super) vm: VmParts,
    /// By index.
    pub(super) vcpus: Vec<VcpuParts>,
}

impl ResetState {
    pub(super) fn of(host: &Host, config: &VmConfig) -> Result<Self, VmError> {
        let vm = retry(|| host.kvm.create_vm()).map_err(call("KVM_CREATE_VM"))?;
        arch::prepare_vm(&vm)?;
        if config.has_irqchip() {
            arch::before_vcpus(&vm, config)?;
        }
        let vcpus =
            (0..config.cpus.max(1)).map(|index| vcpu(&vm, index, host, config)).collect::<Result<_, _>>()?;
        if config.has_irqchip() {
            arch::after_vcpus(&vm, config)?;
        }
        Ok(Self { vm: VmParts::read(&vm, config)?, vcpus })
    }
}

fn vcpu(vm: &VmFd, index: u32, host: &Host, config: &VmConfig) -> Result<VcpuParts, VmError> {
    let vcpu = retry(|| vm.create_vcpu(index.into())).map_err(call("KVM_CREATE_VCPU"))?;
    arch::init_vcpu(&vcpu, index, (&host.kvm, &host.facts), config)?;
    let access = VcpuAccess::new(vm, (&vcpu, index, true), (&host.kvm, &host.facts), config)?;
    VcpuParts::read(access, None).map(VcpuParts::for_reset)
}
