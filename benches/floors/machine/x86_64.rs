//! A PC's processor in real mode, and its interrupt controllers.

use kvm_bindings::{
    CpuId, KVM_IRQ_ROUTING_MSI, KVM_MAX_CPUID_ENTRIES, KvmIrqRouting, Msrs, kvm_irq_routing_entry,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs,
};
use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};

/// mov dx, 0x600; mov al, 0x34; out dx, al
pub(crate) const POWER_OFF: &[u8] = &[0xba, 0x00, 0x06, 0xb0, 0x34, 0xee];
/// hlt; jmp back
pub(crate) const HALT: &[u8] = &[0xf4, 0xeb, 0xfd];
/// Loops of accesses to a port and to a register: mov al, 0x55; out 0x80, al; jmp back to the out. fs mov [0], eax; jmp back.
pub(crate) const EXITS: &[(&str, &[u8])] =
    &[("pio", &[0xb0, 0x55, 0xe6, 0x80, 0xeb, 0xfc]), ("mmio", &[0x66, 0x64, 0xa3, 0x00, 0x00, 0xeb, 0xf9])];

/// Whether a run ended with [`POWER_OFF`].
pub(crate) fn is_off(exit: &VcpuExit) -> bool {
    matches!(exit, VcpuExit::IoOut(0x600, [_]))
}

/// The host's KVM, and what every vCPU starts with.
pub(crate) struct Host {
    pub(crate) kvm: Kvm,
    cpuid: CpuId,
}

impl Host {
    pub(crate) fn open() -> Self {
        let kvm = Kvm::new().expect("/dev/kvm");
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).unwrap();
        let deadline = u32::from(kvm.check_extension(Cap::TscDeadlineTimer));
        for leaf in cpuid.as_mut_slice().iter_mut().filter(|leaf| leaf.function == 1) {
            leaf.ecx |= deadline << 24;
        }
        Self { kvm, cpuid }
    }

    pub(super) fn vm(&self) -> VmFd {
        let vm = self.kvm.create_vm().unwrap();
        vm.set_tss_address(0xfffb_d000).unwrap();
        vm
    }

    /// The interrupt controllers and a vCPU.
    pub(super) fn vcpu(&self, vm: &VmFd) -> VcpuFd {
        vm.create_irq_chip().unwrap();
        let vcpu = vm.create_vcpu(0).unwrap();
        vcpu.set_cpuid2(&self.cpuid).unwrap();
        let msr = |index, data| kvm_msr_entry { index, data, reserved: 0 };
        // IA32_MISC_ENABLE: fast strings; IA32_MTRR_DEF_TYPE: on, write-back.
        let msrs = Msrs::from_entries(&[msr(0x1a0, 1), msr(0x2ff, 0x806)]).unwrap();
        assert_eq!(vcpu.set_msrs(&msrs).unwrap(), 2);
        vcpu
    }
}

/// Has an interrupt line carry a message.
pub(crate) fn route(vm: &VmFd, gsi: u32, address: u32, data: u32) {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    (entry.u.msi.address_lo, entry.u.msi.data) = (address, data);
    vm.set_gsi_routing(&KvmIrqRouting::from_entries(&[entry]).unwrap()).unwrap();
}

/// A flat segment as KVM takes it; its type is code (11) or data (3).
pub(crate) fn segment(kind: u8, selector: u16, base: u64, limit: u32, protected: bool) -> kvm_segment {
    let flag = u8::from(protected);
    kvm_segment {
        base,
        limit,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        db: flag,
        g: flag,
        ..Default::default()
    }
}

/// Real mode at `code`, FS at `fs`; the rest as the processor resets it.
pub(crate) fn enter(vcpu: &VcpuFd, code: u64, fs: u64) {
    let data = segment(3, 0, 0, 0xffff, false);
    let system = |kind| kvm_segment { limit: 0xffff, type_: kind, present: 1, ..Default::default() };
    let sregs = kvm_sregs {
        cs: segment(11, 0, 0, 0xffff, false),
        ds: data,
        es: data,
        fs: kvm_segment { base: fs, ..data },
        gs: data,
        ss: data,
        tr: system(11),
        ldt: system(2),
        cr0: 0x10,
        apic_base: 0xfee0_0900,
        ..Default::default()
    };
    vcpu.set_sregs(&sregs).unwrap();
    vcpu.set_regs(&kvm_regs { rip: code, rflags: 2, ..Default::default() }).unwrap();
}
