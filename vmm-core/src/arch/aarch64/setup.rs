//! How KVM's virtual machines and vCPUs are set up.

use std::sync::OnceLock;

use kvm_bindings::{
    KVM_ARM_VCPU_PMU_V3_CTRL, KVM_ARM_VCPU_PMU_V3_INIT, KVM_ARM_VCPU_PMU_V3_IRQ, KVM_ARM_VCPU_POWER_OFF,
    KVM_ARM_VCPU_SVE, KVM_CAP_ARM_NISV_TO_USER, KVM_CAP_ARM_SYSTEM_SUSPEND, kvm_device_attr, kvm_enable_cap,
    kvm_vcpu_init,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use ossature_boot::Caches;

use super::caches::Told;
use super::features::Features;
use super::gic::Version;
use super::one_reg::{self, CLIDR, SVE_LENGTHS};
use super::vcpu_state::VcpuParts;
use crate::call::call;
use crate::{Capability, VmConfig, VmError};

/// What a machine has on this architecture only.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArchConfig {
    /// What vCPUs were made with whose states they take over.
    pub(super) saved: Option<MadeWith>,
    pub(super) caches: Told,
}

/// What a vCPU is made with, and keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct MadeWith {
    pub(super) features: Features,
    /// The lengths of SVE vectors: all that the host has, if it does not say.
    pub(super) sve_lengths: Option<[u8; 64]>,
}

impl ArchConfig {
    /// Has vCPUs be made as those were that were in these states, which all were the same.
    pub(crate) fn take_over<'a>(&mut self, mut vcpus: impl Iterator<Item = &'a VcpuParts>) {
        self.saved = vcpus.next().map(VcpuParts::made_with);
    }
}

/// What is asked of the host once.
#[derive(Debug, Default)]
pub(crate) struct HostFacts {
    address_bits: OnceLock<u32>,
    pub(super) caches: OnceLock<Option<Caches>>,
    /// The CLIDR_EL1 of its guests' processors: known once there was one.
    pub(super) clidr: OnceLock<u64>,
    /// The newest that it offers.
    pub(super) gic: OnceLock<Version>,
}

/// No rings of dirty pages: what the kernel writes of the interrupt controllers' tables would be in none of them.
pub(crate) const HAS_DIRTY_RINGS: bool = false;

/// Where the kernel does not say (before Linux 4.20).
const DEFAULT_ADDRESS_BITS: u32 = 40;

/// What a machine cannot be made without.
pub(crate) const REQUIRED: [(Capability, Cap); 7] = [
    (Capability::UserMemory, Cap::UserMemory),
    (Capability::Irqchip, Cap::Irqchip),
    (Capability::IrqRouting, Cap::IrqRouting),
    (Capability::Irqfd, Cap::Irqfd),
    (Capability::Ioeventfd, Cap::Ioeventfd),
    (Capability::Psci, Cap::ArmPsci02),
    (Capability::ImmediateExit, Cap::ImmediateExit),
];

/// The newest of them: a kernel that has it has the others.
pub(crate) const NEWEST: Cap = Cap::ImmediateExit;

/// The bits of addresses that guests have: what this host's processor translates.
pub(crate) fn address_bits((kvm, facts): (&Kvm, &HostFacts)) -> u32 {
    let ask = || u32::try_from(kvm.check_extension_int(Cap::ArmVmIPASize)).unwrap_or(0);
    match *facts.address_bits.get_or_init(ask) {
        0 => DEFAULT_ADDRESS_BITS,
        bits => bits,
    }
}

/// Has the kernel tell of accesses that the processor does not decode for it, where it can (Linux 5.5): without that,
/// `KVM_RUN` fails with ENOSYS. Offers guests SYSTEM_SUSPEND, where it can (Linux 5.19). A machine is created with as many
/// address bits as the host has.
pub(crate) fn prepare_vm(vm: &VmFd) -> Result<(), VmError> {
    let enable = |cap, name| match vm.enable_cap(&kvm_enable_cap { cap, ..Default::default() }) {
        Err(error) if error.errno() == libc::EINVAL => Ok(()),
        result => result.map_err(call(name)),
    };
    enable(KVM_CAP_ARM_NISV_TO_USER, "KVM_ENABLE_CAP of KVM_CAP_ARM_NISV_TO_USER")?;
    enable(KVM_CAP_ARM_SYSTEM_SUSPEND, "KVM_ENABLE_CAP of KVM_CAP_ARM_SYSTEM_SUSPEND")
}

/// Gives vCPU `index` the features of the host's processor, or those that were saved, and PSCI. All but the first wait for
/// the guest to start them.
pub(crate) fn init_vcpu(
    (vm, vcpu): (&VmFd, &VcpuFd),
    index: u32,
    (kvm, facts): (&Kvm, &HostFacts),
    config: &VmConfig,
) -> Result<(), VmError> {
    let features = Features::of(kvm, config);
    features.check(kvm)?;
    vcpu.vcpu_init(&vcpu_init(vm, index, features)?).map_err(call("KVM_ARM_VCPU_INIT"))?;
    if features.has_sve() {
        if let Some(lengths) = config.arch.saved.and_then(|saved| saved.sve_lengths) {
            one_reg::set(vcpu, SVE_LENGTHS, &lengths).map_err(|_| VmError::MissingFeature {
                feature: format!("SVE vectors of the lengths {}", one_reg::hex(&lengths)),
            })?;
        }
        vcpu.vcpu_finalize(&(KVM_ARM_VCPU_SVE as i32)).map_err(call("KVM_ARM_VCPU_FINALIZE"))?;
    }
    if facts.clidr.get().is_none() {
        let mut clidr = [0; size_of::<u64>()];
        one_reg::get(vcpu, CLIDR, &mut clidr).map_err(call("KVM_GET_ONE_REG of CLIDR_EL1"))?;
        // Another thread may have been first, with the same.
        let _ = facts.clidr.set(u64::from_ne_bytes(clidr));
    }
    Ok(())
}

/// The interrupt of performance monitors, each processor's own, as Arm's base system architecture numbers it.
const PMU_IRQ: u32 = 23;

/// Gives a vCPU what it can have only once there are interrupt controllers: its performance monitors.
pub(crate) fn complete_vcpu(vcpu: &VcpuFd, kvm: &Kvm, config: &VmConfig) -> Result<(), VmError> {
    if !has_performance_monitors(kvm, config) {
        return Ok(());
    }
    let set = |attr: u32, addr: u64| {
        let attr = kvm_device_attr { group: KVM_ARM_VCPU_PMU_V3_CTRL, attr: attr.into(), addr, flags: 0 };
        vcpu.set_device_attr(&attr).map_err(call("KVM_SET_DEVICE_ATTR of the performance monitors"))
    };
    if config.has_irqchip() {
        set(KVM_ARM_VCPU_PMU_V3_IRQ, std::ptr::from_ref(&PMU_IRQ) as u64)?;
    }
    set(KVM_ARM_VCPU_PMU_V3_INIT, 0)
}

/// Returns true if a machine's vCPUs have performance monitors.
pub(crate) fn has_performance_monitors(kvm: &Kvm, config: &VmConfig) -> bool {
    Features::of(kvm, config).has_pmu()
}

/// What vCPU `index` is initialized with, at first and when it starts anew.
pub(super) fn vcpu_init(vm: &VmFd, index: u32, features: Features) -> Result<kvm_vcpu_init, VmError> {
    let mut init = kvm_vcpu_init::default();
    vm.get_preferred_target(&mut init).map_err(call("KVM_ARM_PREFERRED_TARGET"))?;
    let off = if index > 0 { 1 << KVM_ARM_VCPU_POWER_OFF } else { 0 };
    if let Some(first) = init.features.first_mut() {
        *first |= features.bits() | off;
    }
    Ok(init)
}

/// Guests have no clock to be told by: their counter goes on.
pub(crate) fn notify_paused(_: &VcpuFd) -> Result<(), VmError> {
    Ok(())
}
