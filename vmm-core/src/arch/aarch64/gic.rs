//! The interrupt controllers of a machine, in the kernel: a GICv3 with its ITS, or a GICv2 on hosts that offer no other.

use std::fmt;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V2_ADDR_TYPE_CPU, KVM_VGIC_V2_ADDR_TYPE_DIST,
    KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device, kvm_device_attr,
    kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::irq::{PRIVATE_IRQS, WIRED_LINES};
use super::its::Its;
use super::setup::HostFacts;
use super::spaces::{CPU_INTERFACE, DISTRIBUTOR, REDISTRIBUTORS};
use super::sys;
use crate::call::call;
use crate::{VmConfig, VmError};

/// The version of a GIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// With lines alone, and interfaces for 8 processors.
    V2,
    /// With messages, by an ITS.
    V3,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::V2 { "v2" } else { "v3" })
    }
}

impl Version {
    /// The newest that a host offers.
    pub(super) fn of_host(vm: &VmFd, facts: &HostFacts) -> Result<Self, VmError> {
        if let Some(version) = facts.gic.get() {
            return Ok(*version);
        }
        let offered =
            [Self::V3, Self::V2].into_iter().find(|version| sys::offers_device(vm, version.device()));
        let what = "a GICv3 or a GICv2, the interrupt controller of this machine";
        offered.map(|version| *facts.gic.get_or_init(|| version)).ok_or(VmError::Unsupported { what })
    }

    fn device(self) -> u32 {
        match self {
            Self::V2 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V2,
            Self::V3 => kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
        }
    }

    /// What it has in memory, and where.
    fn places(self) -> [(u32, u64); 2] {
        match self {
            Self::V2 => {
                [(KVM_VGIC_V2_ADDR_TYPE_DIST, DISTRIBUTOR.0), (KVM_VGIC_V2_ADDR_TYPE_CPU, CPU_INTERFACE.0)]
            }
            Self::V3 => [
                (KVM_VGIC_V3_ADDR_TYPE_DIST, DISTRIBUTOR.0),
                (KVM_VGIC_V3_ADDR_TYPE_REDIST, REDISTRIBUTORS.0),
            ],
        }
    }
}

/// What is kept of the interrupt controllers.
#[derive(Debug)]
pub(crate) struct Controllers {
    pub(super) version: Version,
    pub(super) gic: DeviceFd,
    /// That of a GICv3.
    pub(super) its: Option<Its>,
}

/// The GIC is complete once it knows all vCPUs, and takes no interrupts before.
pub(crate) const VCPUS_FIRST: bool = true;

/// Returns true if a message can be an interrupt.
pub(crate) fn has_messages(vm: &VmFd, facts: &HostFacts) -> bool {
    // Where there is neither, there is no machine.
    !matches!(Version::of_host(vm, facts), Ok(Version::V2))
}

/// Creates the interrupt controllers.
pub(crate) fn create_controllers(vm: &VmFd, _: &VmConfig, facts: &HostFacts) -> Result<Controllers, VmError> {
    let version = Version::of_host(vm, facts)?;
    let mut device = kvm_create_device { type_: version.device(), ..Default::default() };
    let gic = vm.create_device(&mut device).map_err(call("KVM_CREATE_DEVICE of the GIC"))?;
    let set = |group, attr: u32, value: Option<&u64>| {
        let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
        let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
        gic.set_device_attr(&attr).map_err(call("KVM_SET_DEVICE_ATTR of the GIC"))
    };
    for (what, base) in version.places() {
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, what, Some(&base))?;
    }
    // The kernel reads the first 32 bits.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&u64::from(PRIVATE_IRQS + WIRED_LINES)))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
    let its = (version == Version::V3).then(|| Its::create(vm)).transpose()?;
    Ok(Controllers { version, gic, its })
}
