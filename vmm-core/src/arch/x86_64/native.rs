//! What the host's processor says of itself that KVM does not pass on: its name and its caches.

use std::arch::x86_64::__cpuid_count;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// The processor's name, then its caches and TLBs as AMD's processors describe them.
const NAME_AND_CACHES: [u32; 5] = [0x8000_0002, 0x8000_0003, 0x8000_0004, 0x8000_0005, 0x8000_0006];
/// Caches, one for each subleaf until one has no type: Intel's, and AMD's where there is leaf 0x8000_0001's flag for it.
const INTEL_CACHES: u32 = 0x4;
const AMD_CACHES: u32 = 0x8000_001d;
/// Leaf 0x8000_0001, ECX.
const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
/// More caches than any processor has.
const MAX_CACHES: u32 = 16;

/// Executes the instruction.
pub(super) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe)] // it is not unsafe for newer compilers
    // SAFETY: every x86_64 processor has the instruction, which changes nothing but its results.
    let result = unsafe { __cpuid_count(leaf, subleaf) };
    [result.eax, result.ebx, result.ecx, result.edx]
}

/// Adds what `supported`, which KVM can give to guests, lacks of the name and the caches that `native` has.
pub(super) fn complete(supported: &mut Vec<kvm_cpuid_entry2>, native: impl Fn(u32, u32) -> [u32; 4]) {
    let exists = |leaf: u32| {
        let [last, ..] = native(leaf & 0x8000_0000, 0);
        last >= leaf
    };
    for leaf in NAME_AND_CACHES.into_iter().filter(|leaf| exists(*leaf)) {
        if lacks(supported, leaf) {
            replace(supported, leaf, [entry(leaf, 0, 0, native(leaf, 0))]);
        }
    }
    let extended = supported.iter().find(|entry| entry.function == 0x8000_0001);
    let has_amd_caches = extended.is_some_and(|entry| entry.ecx & TOPOLOGY_EXTENSIONS != 0);
    for (leaf, has) in [(INTEL_CACHES, true), (AMD_CACHES, has_amd_caches)] {
        if has && exists(leaf) && lacks(supported, leaf) {
            let all = (0..MAX_CACHES).map(|index| (index, native(leaf, index)));
            // With the one that ends the list.
            let mut ended = false;
            let caches = all.take_while(|(_, [eax, ..])| !std::mem::replace(&mut ended, eax & 0x1f == 0));
            let caches: Vec<_> =
                caches.map(|(index, it)| entry(leaf, index, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, it)).collect();
            replace(supported, leaf, caches);
        }
    }
    for first in [0, 0x8000_0000] {
        let of_range = |entry: &&kvm_cpuid_entry2| entry.function & 0xf000_0000 == first;
        let last = supported.iter().filter(of_range).map(|entry| entry.function).max().unwrap_or(first);
        let first = supported.iter_mut().find(|entry| entry.function == first);
        first.into_iter().for_each(|entry| entry.eax = entry.eax.max(last));
    }
}

/// Returns true if the leaf is not there or has nothing but zeros.
fn lacks(entries: &[kvm_cpuid_entry2], leaf: u32) -> bool {
    let mut of_leaf = entries.iter().filter(|entry| entry.function == leaf);
    of_leaf.all(|entry| [entry.eax, entry.ebx, entry.ecx, entry.edx] == [0; 4])
}

fn replace(entries: &mut Vec<kvm_cpuid_entry2>, leaf: u32, with: impl IntoIterator<Item = kvm_cpuid_entry2>) {
    entries.retain(|entry| entry.function != leaf);
    entries.extend(with);
}

fn entry(function: u32, index: u32, flags: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
}

#[cfg(test)]
mod tests;
