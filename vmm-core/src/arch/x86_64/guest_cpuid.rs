//! The CPUID that guests get: what the host's processor and KVM offer, with the guest's own topology.

use kvm_bindings::kvm_cpuid_entry2;

use super::cpuid::Cpuid;
use super::topology::Position;

/// What of a vCPU's CPUID is the machine's choice rather than the host's.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuFeatures {
    /// Where it is: a core with one thread.
    pub position: Position,
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

/// The CPUID of a vCPU.
pub(super) fn cpuid(supported: &[kvm_cpuid_entry2], features: CpuFeatures) -> Cpuid {
    let position = features.position;
    let amd = supported.iter().any(|entry| entry.function == 0 && matches!(entry.ebx, AMD | HYGON));
    let mut entries: Vec<_> = supported.iter().filter(|e| !is_topology_leaf(e.function)).copied().collect();
    for entry in &mut entries {
        patch(entry, features);
        if entry.function == 0x8000_0001 {
            set(&mut entry.ecx, CMP_LEGACY, amd && position.core_bits > 0);
        }
    }
    for leaf in [0xb, 0x1f] {
        if supported.iter().any(|e| e.function == leaf) {
            entries.extend(topology(leaf, position));
        }
    }
    Cpuid { entries }
}

/// Extended topology (SDM vol. 2A, CPUID): made anew, because the host's describes the host.
fn is_topology_leaf(function: u32) -> bool {
    matches!(function, 0xb | 0x1f)
}

fn patch(entry: &mut kvm_cpuid_entry2, features: CpuFeatures) {
    let Position { apic_id, package, core, cores, core_bits } = features.position;
    // As many APIC ids as a package has room for.
    let ids = 1 << core_bits;
    match entry.function {
        0x1 => {
            // Initial APIC id and logical processors of the package, as far as 8 bits go.
            entry.ebx = entry.ebx & 0xffff | apic_id.min(0xff) << 24 | ids.min(0xff) << 16;
            entry.ecx |= HYPERVISOR;
            set(&mut entry.ecx, TSC_DEADLINE, features.lapic);
            set(&mut entry.ecx, X2APIC, features.lapic);
            set(&mut entry.edx, HTT, ids > 1);
        }
        // Intel's caches: the first two levels belong to one core, the third to the package.
        0x4 => {
            let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
            if kind != 0 {
                let sharing = if level >= 3 { ids - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14 | ((ids - 1) & 0x3f) << 26;
            }
        }
        // AMD's cores per package (APM vol. 3, E.4.7).
        0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (cores - 1).min(0xff),
        // AMD's caches, as leaf 4.
        0x8000_001d => {
            let (kind, level) = (entry.eax & 0x1f, entry.eax >> 5 & 0x7);
            if kind != 0 {
                let sharing = if level >= 3 { ids - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | (sharing & 0xfff) << 14;
            }
        }
        // AMD's extended APIC id, core (one thread each) and node (one for each package).
        0x8000_001e => {
            entry.eax = apic_id;
            entry.ebx = core & 0xff;
            entry.ecx = package & 0xff;
            entry.edx = 0;
        }
        _ => {}
    }
}

fn set(register: &mut u32, bit: u32, on: bool) {
    if on { *register |= bit } else { *register &= !bit }
}

/// One thread per core, the cores of the package, and the empty level that ends the list.
fn topology(leaf: u32, position: Position) -> [kvm_cpuid_entry2; 3] {
    let level = |number, kind, shift, count| kvm_cpuid_entry2 {
        function: leaf,
        index: number,
        flags: SIGNIFICANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: number | kind << 8,
        edx: position.apic_id,
        ..kvm_cpuid_entry2::default()
    };
    [
        level(0, LEVEL_THREAD, 0, 1),
        level(1, LEVEL_CORE, position.core_bits, position.cores),
        level(2, 0, 0, 0),
    ]
}

#[cfg(test)]
mod tests;
