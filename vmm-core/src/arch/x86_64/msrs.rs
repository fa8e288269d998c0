//! The model-specific registers: those that a boot needs, and those that belong to a vCPU's state.

use kvm_bindings::{Msrs, kvm_msr_entry};
use kvm_ioctls::VcpuFd;

use crate::VmError;
use crate::call::call;

/// `IA32_TIME_STAMP_COUNTER`.
pub(super) const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`.
const TSC_DEADLINE: u32 = 0x6e0;

/// `IA32_MISC_ENABLE` (SDM vol. 4, 2.1).
const MISC_ENABLE: u32 = 0x1a0;
/// Fast strings: Linux takes `rep movs` for slow on Intel processors without this bit.
const MISC_ENABLE_FAST_STRING: u64 = 1;

/// `IA32_MTRR_DEF_TYPE` (SDM vol. 3, 12.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on.
const MTRR_ENABLE: u64 = 1 << 11;
/// Memory that no range register covers is write-back.
const MTRR_WRITE_BACK: u64 = 6;

/// As many as one call takes (`KVM_MAX_MSR_ENTRIES` of the kernel).
const CALL: usize = 256;

/// What firmware would have set before it hands over to an operating system.
pub(super) fn boot() -> [kvm_msr_entry; 2] {
    [entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)]
}

fn entry(index: u32, data: u64) -> kvm_msr_entry {
    kvm_msr_entry { index, data, reserved: 0 }
}

/// The MSRs of a state, in the order in which they are written, from those that the host lists
/// (`KVM_GET_MSR_INDEX_LIST`), which lacks the memory types and the machine-check banks. Those that `vcpu` does not have
/// are left out.
pub(super) fn of_state(vcpu: &VcpuFd, listed: &[u32]) -> Result<Vec<u32>, VmError> {
    Ok(read(vcpu, &candidates(listed))?.into_iter().map(|(msr, _)| msr).collect())
}

fn candidates(listed: &[u32]) -> Vec<u32> {
    /// Hyper-V's interface, which guests are not offered: reading one is enough for KVM to set it up.
    fn hyperv(msr: u32) -> bool {
        (0x4000_0000..0x4000_0200).contains(&msr)
    }
    // PAT and MTRRs: variable, fixed, default.
    let memory_types =
        (0x200..0x210).chain([0x250, 0x258, 0x259]).chain(0x268..0x270).chain([0x277, MTRR_DEF_TYPE]);
    let machine_checks = 0x400..0x480;
    let mut msrs: Vec<_> = listed.iter().copied().chain(memory_types).chain(machine_checks).collect();
    msrs.retain(|msr| !hyperv(*msr));
    // The TSC before its deadline, and the deadline when all that its timer depends on is there.
    let order = |msr: u32| (msr == TSC_DEADLINE, msr != TSC, msr);
    msrs.sort_unstable_by_key(|msr| order(*msr));
    msrs.dedup();
    msrs
}

fn list(entries: &[kvm_msr_entry]) -> Result<Msrs, VmError> {
    Msrs::from_entries(entries).map_err(|_| VmError::Unsupported { what: "a list of MSRs" })
}

/// Reads those of `msrs` that there are.
pub(super) fn read(vcpu: &VcpuFd, msrs: &[u32]) -> Result<Vec<(u32, u64)>, VmError> {
    let mut found = Vec::with_capacity(msrs.len());
    let mut left = msrs;
    while !left.is_empty() {
        let entries: Vec<_> = left.iter().take(CALL).map(|msr| entry(*msr, 0)).collect();
        let mut values = list(&entries)?;
        // KVM stops at the first that it refuses.
        let read = vcpu.get_msrs(&mut values).map_err(call("KVM_GET_MSRS"))?;
        found.extend(values.as_slice().iter().take(read).map(|entry| (entry.index, entry.data)));
        let done = if read < entries.len() { read + 1 } else { read };
        left = left.get(done..).unwrap_or_default();
    }
    Ok(found)
}

/// Those of `wanted` that differ from what a vCPU has, and the TSC.
pub(super) fn differing(vcpu: &VcpuFd, wanted: &[(u32, u64)]) -> Result<Vec<u32>, VmError> {
    let names: Vec<_> = wanted.iter().map(|(msr, _)| *msr).collect();
    let mut current = read(vcpu, &names)?.into_iter().peekable();
    let differing = wanted.iter().filter(|(msr, value)| {
        let now = current.next_if(|(other, _)| other == msr).map(|(_, value)| value);
        now != Some(*value) || *msr == TSC
    });
    Ok(differing.map(|(msr, _)| *msr).collect())
}

/// Writes to vCPU `index` those of `wanted` that are named, in their order.
pub(super) fn write(vcpu: &VcpuFd, index: u32, wanted: &[(u32, u64)], named: &[u32]) -> Result<(), VmError> {
    let mut named = named.iter().peekable();
    let entries = wanted.iter().filter(|(msr, _)| named.next_if_eq(&msr).is_some());
    write_all(vcpu, index, &entries.map(|(msr, value)| entry(*msr, *value)).collect::<Vec<_>>())
}

/// Writes each entry, in their order.
pub(super) fn write_all(vcpu: &VcpuFd, index: u32, entries: &[kvm_msr_entry]) -> Result<(), VmError> {
    for entries in entries.chunks(CALL) {
        let written = vcpu.set_msrs(&list(entries)?).map_err(call("KVM_SET_MSRS"))?;
        if let Some(refused) = entries.get(written) {
            return Err(VmError::MsrRefused { index, msr: refused.index, value: refused.data });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
