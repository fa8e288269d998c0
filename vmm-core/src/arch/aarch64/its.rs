//! The interrupt translation service (ITS), which makes messages interrupts: of whom (the device id) and what they say
//! (the event id), by tables that the guest has in its memory.

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_VGIC_ITS_ADDR_TYPE,
    kvm_create_device, kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS,
};
use kvm_ioctls::{DeviceFd, VmFd};

use super::spaces::ITS;
use crate::VmError;
use crate::call::call;

/// The ITS of a machine, in the kernel.
#[derive(Debug)]
pub(super) struct Its(pub(super) DeviceFd);

impl Its {
    /// Creates it, once the GIC is complete.
    pub(super) fn create(vm: &VmFd) -> Result<Self, VmError> {
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_ITS, ..Default::default() };
        let fd = vm.create_device(&mut device).map_err(|error| match error.errno() {
            libc::ENODEV => VmError::Unsupported { what: "an ITS, which makes messages interrupts" },
            _ => call("KVM_CREATE_DEVICE of an ITS")(error),
        })?;
        let its = Self(fd);
        its.set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_ITS_ADDR_TYPE, Some(ITS.0))?;
        its.control(KVM_DEV_ARM_VGIC_CTRL_INIT)?;
        Ok(its)
    }

    pub(super) fn set(&self, group: u32, attr: u32, value: Option<u64>) -> Result<(), VmError> {
        let addr = value.as_ref().map_or(0, |value| std::ptr::from_ref(value) as u64);
        let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
        self.0.set_device_attr(&attr).map_err(call("KVM_SET_DEVICE_ATTR of the ITS"))
    }

    pub(super) fn control(&self, what: u32) -> Result<(), VmError> {
        self.set(KVM_DEV_ARM_VGIC_GRP_CTRL, what, None)
    }
}
