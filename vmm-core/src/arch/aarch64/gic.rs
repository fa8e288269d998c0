//! The interrupt controllers of a machine: a GICv3 and its ITS in the kernel.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_DEV_ARM_VGIC_GRP_NR_IRQS, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::irq::{PRIVATE_IRQS, WIRED_LINES};
use super::its::Its;
use super::spaces::{DISTRIBUTOR, REDISTRIBUTORS};
use crate::call::call;
use crate::{VmConfig, VmError};

/// What is kept of the interrupt controllers.
#[derive(Debug)]
pub(crate) struct Controllers {
    pub(super) gic: DeviceFd,
    pub(super) its: Its,
}

/// The GIC is complete once it knows all vCPUs, and takes no interrupts before.
pub(crate) const VCPUS_FIRST: bool = true;

/// Creates the interrupt controllers.
pub(crate) fn create_controllers(vm: &VmFd, _: &VmConfig) -> Result<Controllers, VmError> {
    let mut device =
        kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, ..Default::default() };
    let gic = vm.create_device(&mut device).map_err(|error| match error.errno() {
        libc::ENODEV => VmError::Unsupported { what: "a GICv3, the interrupt controller of this machine" },
        _ => call("KVM_CREATE_DEVICE of a GICv3")(error),
    })?;
    let set = |group, attr: u32, value: Option<&u64>| {
        let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
        let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
        gic.set_device_attr(&attr).map_err(call("KVM_SET_DEVICE_ATTR of the GIC"))
    };
    set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, Some(&DISTRIBUTOR.0))?;
    set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, Some(&REDISTRIBUTORS.0))?;
    // The kernel reads the first 32 bits.
    set(KVM_DEV_ARM_VGIC_GRP_NR_IRQS, 0, Some(&u64::from(PRIVATE_IRQS + WIRED_LINES)))?;
    set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None)?;
    let its = Its::create(vm)?;
    Ok(Controllers { gic, its })
}
