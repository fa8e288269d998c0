//! What is asked of the host once, for all machines.

use std::sync::OnceLock;

use kvm_bindings::{KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::{Cap, Kvm, VcpuFd};

use super::{msrs, native};
use crate::VmError;
use crate::call::call;

/// The answers.
#[derive(Debug, Default)]
pub(crate) struct HostFacts {
    cpuid: OnceLock<Vec<kvm_cpuid_entry2>>,
    msrs: OnceLock<Vec<u32>>,
    nested: OnceLock<bool>,
}

impl HostFacts {
    /// The CPUID that KVM can give to guests, with the processor's name and caches.
    pub(super) fn cpuid(&self, kvm: &Kvm) -> Result<&[kvm_cpuid_entry2], VmError> {
        if let Some(cpuid) = self.cpuid.get() {
            return Ok(cpuid);
        }
        let cpuid =
            kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(call("KVM_GET_SUPPORTED_CPUID"))?;
        let mut cpuid = cpuid.as_slice().to_vec();
        native::complete(&mut cpuid, native::cpuid);
        Ok(self.cpuid.get_or_init(|| cpuid))
    }

    /// The MSRs that belong to the state of a vCPU such as this one.
    pub(crate) fn state_msrs(&self, kvm: &Kvm, vcpu: &VcpuFd) -> Result<&[u32], VmError> {
        if let Some(msrs) = self.msrs.get() {
            return Ok(msrs);
        }
        let listed = kvm.get_msr_index_list().map_err(call("KVM_GET_MSR_INDEX_LIST"))?;
        let msrs = msrs::of_state(vcpu, listed.as_slice())?;
        Ok(self.msrs.get_or_init(|| msrs))
    }

    /// True if KVM can say whether a vCPU's guest is a hypervisor itself.
    pub(super) fn has_nested_state(&self, kvm: &Kvm) -> bool {
        *self.nested.get_or_init(|| kvm.check_extension(Cap::NestedState))
    }
}
