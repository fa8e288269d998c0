//! A 64-bit Arm processor at EL1, and a GICv3.

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3, KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ,
    KVM_ARM_VCPU_PSCI_0_2, KVM_ARM_VCPU_PTRAUTH_ADDRESS, KVM_ARM_VCPU_PTRAUTH_GENERIC, KVM_ARM_VCPU_SVE,
    KVM_DEV_ARM_VGIC_CTRL_INIT, KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_DEV_ARM_VGIC_GRP_CTRL,
    KVM_SYSTEM_EVENT_SHUTDOWN, KVM_VGIC_V3_ADDR_TYPE_DIST, KVM_VGIC_V3_ADDR_TYPE_REDIST, kvm_create_device,
    kvm_device_attr, kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};

/// mov w0, #0x84000000; add w0, w0, #8; hvc #0: PSCI's SYSTEM_OFF.
pub(crate) const POWER_OFF: &[u8] = &[0x00, 0x80, 0xb0, 0x52, 0x00, 0x20, 0x00, 0x11, 0x02, 0x00, 0x00, 0xd4];
/// wfi; b to it
pub(crate) const HALT: &[u8] = &[0x7f, 0x20, 0x03, 0xd5, 0xff, 0xff, 0xff, 0x17];
/// A loop of accesses to a register: mov w0, #0x55; str w0, [x1]; b to the str.
pub(crate) const EXITS: &[(&str, &[u8])] =
    &[("mmio", &[0xa0, 0x0a, 0x80, 0x52, 0x20, 0x00, 0x00, 0xb9, 0xff, 0xff, 0xff, 0x17])];

/// Whether a run ended with [`POWER_OFF`].
pub(crate) fn is_off(exit: &VcpuExit) -> bool {
    matches!(exit, VcpuExit::SystemEvent(KVM_SYSTEM_EVENT_SHUTDOWN, _))
}

/// The host's KVM.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
}

impl Host {
    pub(crate) fn open() -> Self {
        Self { kvm: Kvm::new().expect("/dev/kvm") }
    }

    pub(super) fn vm(&self) -> VmFd {
        self.kvm.create_vm().unwrap()
    }

    /// A vCPU with what the host has for guests, and the interrupt controller.
    pub(super) fn vcpu(&self, vm: &VmFd) -> VcpuFd {
        let vcpu = vm.create_vcpu(0).unwrap();
        let mut features = kvm_vcpu_init::default();
        vm.get_preferred_target(&mut features).unwrap();
        for (needs, feature) in [
            (None, KVM_ARM_VCPU_PSCI_0_2),
            (Some(Cap::ArmPmuV3), KVM_ARM_VCPU_PMU_V3),
            (Some(Cap::ArmSve), KVM_ARM_VCPU_SVE),
            (Some(Cap::ArmPtrAuthAddress), KVM_ARM_VCPU_PTRAUTH_ADDRESS),
            (Some(Cap::ArmPtrAuthGeneric), KVM_ARM_VCPU_PTRAUTH_GENERIC),
        ] {
            if needs.is_none_or(|needs| self.kvm.check_extension(needs)) {
                features.features[0] |= 1 << feature;
            }
        }
        let has = |feature: u32| features.features[0] & 1 << feature != 0;
        vcpu.vcpu_init(&features).unwrap();
        if has(KVM_ARM_VCPU_SVE) {
            vcpu.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).unwrap();
        }
        let mut device =
            kvm_create_device { type_: kvm_device_type_KVM_DEV_TYPE_ARM_VGIC_V3, ..Default::default() };
        let gic = vm.create_device(&mut device).unwrap();
        let set = |group, attr: u32, value: Option<&u64>| {
            let addr = value.map_or(0, |value| std::ptr::from_ref(value) as u64);
            let attr = kvm_device_attr { group, attr: attr.into(), addr, flags: 0 };
            gic.set_device_attr(&attr).unwrap();
        };
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_DIST, Some(&0xf000_0000));
        set(KVM_DEV_ARM_VGIC_GRP_ADDR, KVM_VGIC_V3_ADDR_TYPE_REDIST, Some(&0xf100_0000));
        set(KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_CTRL_INIT, None);
        if has(KVM_ARM_VCPU_PMU_V3) {
            let number = 23u32;
            for (attr, addr) in
                [(KVM_ARM_VCPU_PMU_V3_IRQ, std::ptr::from_ref(&number) as u64), (KVM_ARM_VCPU_PMU_V3_INIT, 0)]
            {
                let (group, attr) = (KVM_ARM_VCPU_PMU_V3_CTRL, attr.into());
                vcpu.set_device_attr(&kvm_device_attr { group, attr, addr, flags: 0 }).unwrap();
            }
        }
        vcpu
    }
}

/// `KVM_REG_ARM_CORE`: 64 bits, by the offset into `struct kvm_regs` in words.
fn core(offset: u64) -> u64 {
    0x6030_0000_0010_0000 | offset
}

/// EL1 with interrupts masked at `code`, x1 at `base`; the rest as the processor resets it.
pub(crate) fn enter(vcpu: &VcpuFd, code: u64, base: u64) {
    for (offset, value) in [(2, base), (64, code), (66, 0x3c5)] {
        vcpu.set_one_reg(core(offset), &value.to_ne_bytes()).unwrap();
    }
}
