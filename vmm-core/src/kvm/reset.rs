//! The state of a machine before it ever ran.

use kvm_ioctls::VcpuFd;

use super::host::Host;
use super::shared::new_vcpu;
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
        let controllers =
            || config.has_irqchip().then(|| arch::create_controllers(&vm, config, &host.facts)).transpose();
        let first = if arch::VCPUS_FIRST { None } else { controllers()? };
        let vcpus: Vec<_> = (0..config.cpus.max(1))
            .map(|index| new_vcpu(&vm, index, host, config))
            .collect::<Result<_, _>>()?;
        let controllers = if arch::VCPUS_FIRST { controllers()? } else { first };
        let state = |(index, vcpu): (u32, &VcpuFd)| {
            let access = VcpuAccess::new(&vm, (vcpu, index, true), (&host.kvm, &host.facts), config)?;
            VcpuParts::read(access, None).map(VcpuParts::for_reset)
        };
        let vcpus = (0..).zip(&vcpus).map(state).collect::<Result<_, _>>()?;
        Ok(Self { vm: VmParts::read(&vm, controllers.as_ref(), config)?, vcpus })
    }
}
