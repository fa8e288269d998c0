//! How KVM's virtual machines and vCPUs are set up.

use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_IRQCHIP_PIC_MASTER, KVM_PIT_SPEAKER_DUMMY, kvm_irqchip, kvm_pic_state, kvm_pit_config,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use ossature_boot::{Caches, Numa};
use ossature_memory::Dma;

use super::config::CpuidChoice;
use super::cpuid::{Cpuid, CpuidError};
use super::guest_cpuid::{CpuFeatures, cpuid};
use super::preflight::has_svm;
use super::registers::Registers;
use super::topology::Topology;
use super::{HostFacts, msrs};
use crate::call::call;
use crate::{Capability, VmConfig, VmError};

/// Three pages below the BIOS area that Intel hosts without unrestricted guests use for real mode. KVM puts
/// its identity map on the page before them. No RAM and no device may be there.
const TSS_ADDRESS: usize = 0xfffb_d000;

/// The bits of addresses that guests have: as many as there are.
pub(crate) fn address_bits(_: (&Kvm, &HostFacts)) -> u32 {
    52
}

/// There is nothing that a guest would have to be told of its caches: CPUID tells.
pub(crate) fn caches(_: &VmConfig, _: &HostFacts) -> Result<Option<Caches>, VmError> {
    Ok(None)
}

/// Where NUMA nodes leave gaps, numbers are lower than this: interrupts of devices reach no higher APIC id, and Linux does not
/// start a processor that they do not reach.
pub(crate) const NUMBERS_WITH_GAPS: u32 = 255;

/// The number by which KVM knows vCPU `index`: its APIC id.
pub(crate) fn vcpu_id(index: u32, cpus: u32, numa: Option<&Numa>) -> u32 {
    Topology::new(cpus, numa).position(index).apic_id
}

/// As [`caches`].
pub(crate) fn with_processors(_: Caches, _: &HostFacts) -> Option<Caches> {
    None
}

/// What a machine needs before anything else: nothing on AMD's processors, which run real mode by themselves.
pub(crate) fn prepare_vm(vm: &VmFd) -> Result<(), VmError> {
    if has_svm() {
        return Ok(());
    }
    vm.set_tss_address(TSS_ADDRESS).map_err(call("KVM_SET_TSS_ADDR"))
}

/// Rings of dirty pages, where the kernel has them.
pub(crate) const HAS_DIRTY_RINGS: bool = true;

/// What a machine cannot be made without.
pub(crate) const REQUIRED: [(Capability, Cap); 7] = [
    (Capability::UserMemory, Cap::UserMemory),
    (Capability::Irqchip, Cap::Irqchip),
    (Capability::IrqRouting, Cap::IrqRouting),
    (Capability::Irqfd, Cap::Irqfd),
    (Capability::Ioeventfd, Cap::Ioeventfd),
    (Capability::ImmediateExit, Cap::ImmediateExit),
    (Capability::SyncRegs, Cap::SyncRegs),
];

/// The newest of them: a kernel that has it has the others.
pub(crate) const NEWEST: Cap = Cap::SyncRegs;

/// The lines of the first PIC that may be level-triggered: all but 0 to 2.
const FIRST_PIC_ELCR: u8 = 0xf8;

/// What is kept of the interrupt controllers: nothing, they are parts of the virtual machine.
#[derive(Debug)]
pub(crate) struct Controllers;

/// The interrupt controllers exist before the vCPUs.
pub(crate) const VCPUS_FIRST: bool = false;

/// Creates the interrupt controllers, and the timer if there is to be one.
pub(crate) fn create_controllers(
    vm: &VmFd,
    config: &VmConfig,
    _: &HostFacts,
) -> Result<Controllers, VmError> {
    vm.create_irq_chip().map_err(call("KVM_CREATE_IRQCHIP"))?;
    // As firmware leaves it: all lines masked. KVM's own passes an interrupt on at once, at vectors that are those of
    // exceptions until the guest sets it up.
    let mut first = kvm_irqchip { chip_id: KVM_IRQCHIP_PIC_MASTER, ..Default::default() };
    first.chip.pic = kvm_pic_state { imr: 0xff, elcr_mask: FIRST_PIC_ELCR, ..Default::default() };
    vm.set_irqchip(&first).map_err(call("KVM_SET_IRQCHIP"))?;
    if config.arch.pit {
        // The dummy answers port 0x61, where guests gate the timer's second channel.
        let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
        vm.create_pit2(pit).map_err(call("KVM_CREATE_PIT2"))?;
    }
    Ok(Controllers)
}

/// A message is an interrupt of a local APIC.
pub(crate) fn has_messages(_: &VmFd, _: &HostFacts) -> bool {
    true
}

/// Tells the guest that it was paused. It may have no clock to tell it by.
pub(crate) fn notify_paused(vcpu: &VcpuFd) -> Result<(), VmError> {
    match vcpu.kvmclock_ctrl() {
        Err(e) if e.errno() == libc::EINVAL => Ok(()),
        result => result.map_err(call("KVM_KVMCLOCK_CTRL")),
    }
}

/// A vCPU is complete without interrupt controllers.
pub(crate) fn complete_vcpu(_: &VcpuFd, _: &Kvm, _: &VmConfig) -> Result<(), VmError> {
    Ok(())
}

/// There is nothing that a guest would have to be told of them.
pub(crate) fn has_performance_monitors(_: &Kvm, _: &VmConfig) -> bool {
    false
}

/// The longest instruction (SDM vol. 2, 2.3.11).
const MAX_INSTRUCTION: u64 = 15;

/// The guest-physical address of byte `n` of the instruction that `registers` are at. `None` if it does not have it, or
/// if nothing is mapped there.
pub(crate) fn instruction_byte(vcpu: &VcpuFd, _: &Dma, registers: &Registers, n: u64) -> Option<u64> {
    let address = registers.cs.base.wrapping_add(registers.rip).wrapping_add(n);
    let translation = (n < MAX_INSTRUCTION).then(|| vcpu.translate_gva(address).ok())??;
    (translation.valid != 0).then_some(translation.physical_address)
}

/// [`Registers`] have all that tells of exceptions.
pub(crate) fn exception_registers(_: &VcpuFd) -> Vec<(&'static str, u64)> {
    Vec::new()
}

/// Gives vCPU `index` its CPUID and MSRs. The local APIC and the FPU stay as KVM resets them: LINT0 of vCPU 0 passes
/// the PICs' interrupts on, and operating systems set up the rest.
pub(crate) fn init_vcpu(
    (_, vcpu): (&VmFd, &VcpuFd),
    index: u32,
    (kvm, host): (&Kvm, &HostFacts),
    config: &VmConfig,
) -> Result<(), VmError> {
    let cpuid = config_cpuid(index, (kvm, host), config)?;
    if let Err(error) = set_cpuid(vcpu, &cpuid) {
        let default = default_cpuid(index, (kvm, host), config)?;
        return Err(culprit(vcpu, &default, &cpuid).map_or(error, |source| failed(index, source)));
    }
    msrs::write_all(vcpu, index, &msrs::boot())
}

fn failed(index: u32, source: CpuidError) -> VmError {
    VmError::VcpuConfig { index, source: source.into() }
}

/// The CPUID that vCPU `index` has if nobody changes it: all that this host offers.
pub(super) fn default_cpuid(
    index: u32,
    (kvm, host): (&Kvm, &HostFacts),
    config: &VmConfig,
) -> Result<Cpuid, VmError> {
    let position = Topology::new(config.cpus, config.numa.as_ref()).position(index);
    Ok(cpuid(host.cpuid(kvm)?, CpuFeatures { position, lapic: config.has_irqchip() }))
}

/// The CPUID of vCPU `index`.
pub(super) fn config_cpuid(
    index: u32,
    (kvm, host): (&Kvm, &HostFacts),
    config: &VmConfig,
) -> Result<Arc<Cpuid>, VmError> {
    if let CpuidChoice::Saved(all) = &config.arch.cpuid {
        if let Some(cpuid) = all.get(index as usize) {
            return Ok(Arc::clone(cpuid));
        }
    }
    let mut cpuid = default_cpuid(index, (kvm, host), config)?;
    if let CpuidChoice::Edited(hook) = &config.arch.cpuid {
        hook.0(&mut cpuid, index).map_err(|source| failed(index, source))?;
    }
    Ok(Arc::new(cpuid))
}

fn set_cpuid(vcpu: &VcpuFd, cpuid: &Cpuid) -> Result<(), VmError> {
    let cpuid = CpuId::from_entries(&cpuid.entries)
        .map_err(|_| VmError::Unsupported { what: "a processor with this many CPUID leaves" })?;
    vcpu.set_cpuid2(&cpuid).map_err(call("KVM_SET_CPUID2"))
}

/// The first leaf that KVM refuses to have edited, which it does not say itself.
fn culprit(vcpu: &VcpuFd, default: &Cpuid, edited: &Cpuid) -> Option<CpuidError> {
    let mut changed: Vec<_> = default.leaves().chain(edited.leaves()).collect();
    changed.retain(|(leaf, subleaf)| default.get(*leaf, *subleaf) != edited.get(*leaf, *subleaf));
    changed.into_iter().find_map(|(leaf, subleaf)| {
        let mut one = default.clone();
        match edited.get(leaf, subleaf) {
            Some(registers) => one.set(leaf, subleaf, registers).ok()?,
            None => one.entries.retain(|entry| (entry.function, entry.index) != (leaf, subleaf)),
        }
        let reason = |error| crate::error_chain(&error);
        set_cpuid(vcpu, &one).err().map(|error| CpuidError::Refused { leaf, subleaf, reason: reason(error) })
    })
}
