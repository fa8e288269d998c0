//! What vCPUs are made with beside what every vCPU has (`KVM_ARM_VCPU_INIT`).

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC,
    KVM_ARM_VCPU_SVE,
};
use kvm_ioctls::{Cap, Kvm};

use crate::{VmConfig, VmError};

/// Each feature with the capability of a host that has it.
const FEATURES: [(u32, Cap, &str); 5] = [
    (KVM_ARM_VCPU_PSCI_0_2, Cap::ArmPsci02, "PSCI"),
    (KVM_ARM_VCPU_PMU_V3, Cap::ArmPmuV3, "performance monitors"),
    (KVM_ARM_VCPU_SVE, Cap::ArmSve, "SVE"),
    // The kernel has both of them or neither.
    (KVM_ARM_VCPU_PTRAUTH_ADDRESS, Cap::ArmPtrAuthAddress, "pointer authentication"),
    (KVM_ARM_VCPU_PTRAUTH_GENERIC, Cap::ArmPtrAuthGeneric, "pointer authentication"),
];

/// The features of a machine's vCPUs, as KVM numbers them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Features(u32);

impl Features {
    /// Those of the vCPUs of a machine: what was saved, or all that the host has.
    pub(super) fn of(kvm: &Kvm, config: &VmConfig) -> Self {
        config.arch.saved.map_or_else(|| Self::of_host(kvm), |saved| saved.features)
    }

    fn of_host(kvm: &Kvm) -> Self {
        let has = FEATURES.iter().filter(|(_, cap, _)| kvm.check_extension(*cap));
        Self(has.fold(0, |bits, (bit, ..)| bits | 1 << bit))
    }

    /// Those of a state; `None` if there are some that nobody knows.
    pub(super) fn from_bits(bits: u32) -> Option<Self> {
        let known = FEATURES.iter().fold(0, |known, (bit, ..)| known | 1 << bit);
        (bits & !known == 0).then_some(Self(bits))
    }

    pub(super) fn bits(self) -> u32 {
        self.0
    }

    pub(super) fn has_sve(self) -> bool {
        self.0 >> KVM_ARM_VCPU_SVE & 1 != 0
    }

    pub(super) fn has_pmu(self) -> bool {
        self.0 >> KVM_ARM_VCPU_PMU_V3 & 1 != 0
    }

    /// Fails if the host lacks one of them.
    pub(super) fn check(self, kvm: &Kvm) -> Result<(), VmError> {
        let here = Self::of_host(kvm);
        let lacking = FEATURES.iter().find(|(bit, ..)| (self.0 & !here.0) >> bit & 1 != 0);
        lacking.map_or(Ok(()), |(.., name)| Err(VmError::MissingFeature { feature: (*name).into() }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_features_are_refused() {
        let all = FEATURES.iter().fold(0, |all, (bit, ..)| all | 1 << bit);
        assert_eq!(Features::from_bits(all).map(Features::bits), Some(all));
        assert!(Features::from_bits(1 << KVM_ARM_VCPU_SVE).is_some_and(Features::has_sve));
        // Powered off is not what a vCPU has, but where it is.
        assert_eq!([1, 1 << 31].map(Features::from_bits), [None; 2]);
    }
}
