//! The open KVM device, and what is asked of it once.

use std::sync::OnceLock;

use kvm_ioctls::Cap;

use crate::arch::HostFacts;

#[derive(Debug)]
pub(super) struct Host {
    pub(super) kvm: kvm_ioctls::Kvm,
    pub(super) facts: HostFacts,
    register_pages: OnceLock<bool>,
}

impl Host {
    pub(super) fn new(kvm: kvm_ioctls::Kvm) -> Self {
        Self { kvm, facts: HostFacts::default(), register_pages: OnceLock::new() }
    }

    pub(super) fn register_pages(&self) -> bool {
        *self.register_pages.get_or_init(|| self.kvm.check_extension(Cap::ReadonlyMem))
    }

    pub(super) fn max_vcpus(&self) -> u32 {
        saturating(self.kvm.get_max_vcpus())
    }

    /// All vCPUs have lower numbers.
    pub(super) fn max_vcpu_id(&self) -> u32 {
        saturating(self.kvm.get_max_vcpu_id())
    }

    /// The most entries of a ring of dirty pages; 0 where there are no rings.
    pub(super) fn dirty_ring(&self) -> u32 {
        if !crate::arch::HAS_DIRTY_RINGS {
            return 0;
        }
        let cap = kvm_bindings::KVM_CAP_DIRTY_LOG_RING_ACQ_REL;
        let bytes = usize::try_from(self.kvm.check_extension_raw(cap.into())).unwrap_or(0);
        saturating(bytes / super::ring::ENTRY)
    }
}

pub(super) fn saturating(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}
