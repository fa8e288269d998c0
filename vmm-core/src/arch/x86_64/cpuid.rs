//! The CPUID of a vCPU, leaf by leaf, as whoever configures a machine edits it.

use std::fmt;
use std::sync::Arc;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};

/// What the instruction gives for one leaf. On x86_64 only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are the processor's
pub struct CpuidRegisters {
    pub eax: u32,
    pub ebx: u32,
    pub ecx: u32,
    pub edx: u32,
}

/// Why a vCPU cannot have this CPUID. On x86_64 only.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CpuidError {
    /// There is no such leaf.
    #[error("there is no CPUID leaf {leaf:#x}, subleaf {subleaf}")]
    Missing {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// The leaf is the same for every ECX.
    #[error("CPUID leaf {leaf:#x} has no subleaves, and cannot get subleaf {subleaf}")]
    NoSubleaves {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
    },
    /// There are as many leaves as KVM takes.
    #[error("CPUID leaf {leaf:#x}, subleaf {subleaf}, is beyond the {max} that are possible")]
    Full {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// How many there can be.
        max: usize,
    },
    /// The host cannot have it like that.
    #[error("CPUID leaf {leaf:#x}, subleaf {subleaf}: {reason}")]
    Refused {
        /// The leaf.
        leaf: u32,
        /// The subleaf.
        subleaf: u32,
        /// Why not.
        reason: String,
    },
}

/// The CPUID of one vCPU: leaves, some of which have subleaves. On x86_64 only.
#[derive(Clone, PartialEq)]
pub struct Cpuid {
    pub(super) entries: Vec<kvm_cpuid_entry2>,
}

/// Leaves whose contents depend on ECX (SDM vol. 2A, CPUID; APM vol. 3, E.4).
fn has_subleaves(leaf: u32) -> bool {
    matches!(
        leaf,
        0x4 | 0x7 | 0xb | 0xd | 0xf | 0x10 | 0x12 | 0x14 | 0x17 | 0x18 | 0x1a | 0x1b | 0x1d
            ..=0x20 | 0x23 | 0x24 | 0x8000_001d | 0x8000_0020 | 0x8000_0026
    )
}

/// The leaf whose EAX is the last leaf of the range that `leaf` is in.
fn first_of_range(leaf: u32) -> Option<u32> {
    match leaf {
        0..0x1_0000 => Some(0),
        0x4000_0000..0x4000_0100 => Some(0x4000_0000),
        0x8000_0000..0x8001_0000 => Some(0x8000_0000),
        _ => None,
    }
}

impl Cpuid {
    fn position(&self, leaf: u32, subleaf: u32) -> Option<usize> {
        self.entries.iter().position(|entry| {
            let indexed = entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0;
            entry.function == leaf && (!indexed || entry.index == subleaf)
        })
    }

    /// What the guest reads, with `leaf` in EAX and `subleaf` in ECX. `None` if the leaf is not there, where the guest
    /// reads what its processor gives for such leaves.
    pub fn get(&self, leaf: u32, subleaf: u32) -> Option<CpuidRegisters> {
        let entry = self.entries.get(self.position(leaf, subleaf)?)?;
        Some(CpuidRegisters { eax: entry.eax, ebx: entry.ebx, ecx: entry.ecx, edx: entry.edx })
    }

    /// Replaces a leaf or a subleaf, or adds it. A leaf without subleaves has subleaf 0. A leaf that is beyond the last one
    /// of its range becomes the last.
    pub fn set(&mut self, leaf: u32, subleaf: u32, registers: CpuidRegisters) -> Result<(), CpuidError> {
        let indexed = match self.entries.iter().find(|entry| entry.function == leaf) {
            Some(entry) => entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0,
            None => has_subleaves(leaf),
        };
        if !indexed && subleaf != 0 {
            return Err(CpuidError::NoSubleaves { leaf, subleaf });
        }
        let CpuidRegisters { eax, ebx, ecx, edx } = registers;
        let flags = if indexed { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 };
        let entry = kvm_cpuid_entry2 {
            function: leaf,
            index: subleaf,
            flags,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        };
        let position = self.position(leaf, subleaf).unwrap_or(self.entries.len());
        if position == KVM_MAX_CPUID_ENTRIES {
            return Err(CpuidError::Full { leaf, subleaf, max: KVM_MAX_CPUID_ENTRIES });
        }
        match self.entries.get_mut(position) {
            Some(present) => *present = entry,
            None => self.entries.push(entry),
        }
        let first = first_of_range(leaf).filter(|first| *first != leaf);
        let first = first.and_then(|first| self.position(first, 0)).and_then(|at| self.entries.get_mut(at));
        if let Some(first) = first {
            first.eax = first.eax.max(leaf);
        }
        Ok(())
    }

    /// Changes a leaf or a subleaf that is there.
    pub fn update(
        &mut self,
        leaf: u32,
        subleaf: u32,
        change: impl FnOnce(&mut CpuidRegisters),
    ) -> Result<(), CpuidError> {
        let mut registers = self.get(leaf, subleaf).ok_or(CpuidError::Missing { leaf, subleaf })?;
        change(&mut registers);
        self.set(leaf, subleaf, registers)
    }

    /// Removes a leaf with all its subleaves. To hide one that is not the last of its range, set it to zeros: Intel's
    /// processors answer for a leaf that is not there with the last one.
    pub fn remove(&mut self, leaf: u32) -> Result<(), CpuidError> {
        let before = self.entries.len();
        self.entries.retain(|entry| entry.function != leaf);
        if self.entries.len() == before { Err(CpuidError::Missing { leaf, subleaf: 0 }) } else { Ok(()) }
    }

    /// Each leaf with its subleaf.
    pub fn leaves(&self) -> impl Iterator<Item = (u32, u32)> + use<'_> {
        self.entries.iter().map(|entry| (entry.function, entry.index))
    }
}

/// Numbers of an entry in a saved state.
const WORDS: usize = 7;

impl Cpuid {
    /// Bytes that a saved one has at most.
    pub(super) const MAX_BYTES: usize = KVM_MAX_CPUID_ENTRIES * WORDS * 4;

    /// Its entries as bytes.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let words = |e: &kvm_cpuid_entry2| [e.function, e.index, e.flags, e.eax, e.ebx, e.ecx, e.edx];
        self.entries.iter().flat_map(words).flat_map(u32::to_le_bytes).collect()
    }

    /// The entry that has these bytes.
    pub(super) fn entry(bytes: [u8; WORDS * 4]) -> kvm_cpuid_entry2 {
        let mut words = [0; WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks(4)) {
            *word = bytes.try_into().map_or(0, u32::from_le_bytes);
        }
        let [function, index, flags, eax, ebx, ecx, edx] = words;
        kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
    }
}

impl fmt::Debug for Cpuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let leaf = |e: &kvm_cpuid_entry2| {
            format!("{:#x}.{}: {:08x} {:08x} {:08x} {:08x}", e.function, e.index, e.eax, e.ebx, e.ecx, e.edx)
        };
        f.debug_list().entries(self.entries.iter().map(leaf)).finish()
    }
}

/// Edits the CPUID of a vCPU, whose index it gets.
#[derive(Clone)]
pub(crate) struct CpuidHook(pub(super) Arc<Edit>);

type Edit = dyn Fn(&mut Cpuid, u32) -> Result<(), CpuidError> + Send + Sync;

impl fmt::Debug for CpuidHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CpuidHook")
    }
}

#[cfg(test)]
mod tests;
