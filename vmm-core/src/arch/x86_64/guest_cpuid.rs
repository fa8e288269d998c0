//! The CPUID that guests get: what the host's processor and KVM offer, with the guest's own topology.

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid::Cpuid;

/// What of a vCPU's CPUID is the machine's choice rather than the host's.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuFeatures {
    /// vCPUs in the machine: cores of one package, one thread each.
    pub cpus: u32,
    /// True if there is a local APIC. Its timer has a TSC-deadline mode: KVM's has one on every host since Linux 4.10
    /// (`KVM_CAP_TSC_DEADLINE_TIMER`), which is older than what machines need.
    pub lapic: bool,
}

const SIGNIFICANT_INDEX: u32 = kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// Leaf 1, ECX.
const X2APIC: u32 = 1 << 21;
const TSC_DEADLINE: u32 = 1 << 24;
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1, EDX: the package has more than one logical processor.
const HTT: u32 = 1 << 28;
/// Leaf 0x8000_0001, ECX (AMD): the same, and they are cores.
const CMP_LEGACY: u32 = 1 << 1;

/// Leaf 0, EBX: the start of the maker's name.
const AMD: u32 = u32::from_le_bytes(*b"Auth");
const HYGON: u32 = u32::from_le_bytes(*b"Hygo");

/// Levels of leaf 0xb.
const LEVEL_THREAD: u32 = 1;
const LEVEL_CORE: u32 = 2;

/// The CPUID of vCPU `index`, whose APIC id is the same number.
pub(super) fn cpuid(supported: &[kvm_cpuid_entry2], index: u32, features: CpuFeatures) -> Cpuid {
    let cpus = features.cpus.max(1);
    let amd = supported.iter().any(|entry| entry.function == 0 && matches!(entry.ebx, AMD | HYGON));
    let mut entries: Vec<_> = supported.iter().filter(|e| !is_topology_leaf(e.function)).copied().collect();
    for entry in &mut entries {
        patch(entry, index, features);
        if entry.function == 0x8000_0001 {
            set(&mut entry.ecx, CMP_LEGACY, amd && cpus > 1);
        }
    }
    for leaf in [0xb, 0x1f] {
        if supported.iter().any(|e| e.function == leaf) {
            entries.extend(topology(leaf, index, cpus));
        }
    }
    Cpuid { entries }
}

/// Extended topology (SDM vol. 2A, CPUID): made anew, because the host's describes the host.
fn is_topology_leaf(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

/// Bits that hold the numbers below `count`.
fn id_bits(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

fn patch(entry: &mut kvm_cpuid_entry2, index: u32, features: CpuFeatures) {
    let cpus = features.cpus.max(1);
    match entry.function {
        0x1 => {
            // Initial APIC id and logical processors of the package, as far as 8 bits go.
            entry.ebx = entry.ebx & 0xffff | index.min(0xff) << 24 | (1 << id_bits(cpus)).min(0xff) << 16;
            entry.ecx |= HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, features.lapic);
            set(&mut entry.ecx, X2APIC, features.lapic);
            set(&mut entry.edx, HTT, cpus > 1);
        }
        // Intel's caches: the first two levels belong to one core, the third to the package.
        0x4 => {
            let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
            if kind != 0 {
                let sharing = if level >= 3 { (1 << id_bits(cpus)) - 1 } else { 0 };
                entry.eax =
                    entry.eax & 0x3fff | (sharing & 0xfff) << 14 | (((1 << id_bits(cpus)) - 1) & 0x3f) << 26;
            }
        }
        // AMD's cores per package (APM vol. 3, E.4.7).
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | id_bits(cpus) << 12 | (cpus - 1).min(0xff),
        // AMD's caches, as leaf 4.
        0x8000_001d => {
            let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
            if kind != 0 {
                let sharing = if level >= 3 { cpus - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14;
            }
        }
        // AMD's extended APIC id, core (one thread each) and node (one).
        0x8000_001e => {
            entry.eax = index;
            entry.ebx = index & 0xff;
            entry.ecx = 0;
            entry.edx = 0;
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on { *register |= bit } else { *register &= !bit }
}

/// One thread per core, all cores in one package, and the empty level that ends the list.
fn topology(leaf: u32, index: u32, cpus: u32) -> [kvm_cpuid_entry2; 3] {
    let level = |number, kind, shift, count| kvm_cpuid_entry2 {
        function: leaf,
        index: number,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: number | kind << 8,
        edx: index,
        ..kvm_cpuid_entry2::default()
    };
    [level(0, LEVEL_THREAD, 0, 1), level(1, LEVEL_CORE, id_bits(cpus), cpus), level(2, 0, 0, 0)]
}

#[cfg(test)]
mod tests;
