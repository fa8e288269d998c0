//! The registers of a vCPU as KVM names them (`KVM_GET_ONE_REG`): all that it has, of all sizes.

use std::fmt;

use kvm_bindings::{
    KVM_REG_ARM_COPROC_MASK, KVM_REG_ARM_CORE, KVM_REG_ARM_DEMUX, KVM_REG_ARM_FW, KVM_REG_ARM_FW_FEAT_BMAP,
    KVM_REG_ARM64, KVM_REG_ARM64_SVE, KVM_REG_ARM64_SYSREG, KVM_REG_SIZE_MASK, KVM_REG_SIZE_SHIFT,
    KVM_REG_SIZE_U64, KVM_REG_SIZE_U512,
};
use kvm_ioctls::VcpuFd;
use ossature_bus::state::StateError;
use vmm_sys_util::errno;

use super::sys;
use crate::VmError;
use crate::call::call;

/// Bytes of the largest register, an SVE vector.
const MAX_SIZE: usize = 256;
/// Where the number of the architecture is in a name.
const ARCHITECTURE_SHIFT: u32 = 56;
/// Bytes of a register's name.
const NAME: usize = size_of::<u64>();

/// A system register: its five numbers, as in the instruction that reads it.
const fn system(op0: u64, op1: u64, crn: u64, crm: u64, op2: u64) -> RegisterId {
    let number = op0 << 14 | op1 << 11 | crn << 7 | crm << 3 | op2;
    RegisterId(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM64_SYSREG as u64 | number)
}

/// Which caches a processor has.
pub(super) const CLIDR: RegisterId = system(3, 1, 0, 0, 1);

/// How EL1 runs: its byte order, among others.
pub(super) const SCTLR: RegisterId = system(3, 0, 1, 0, 0);

/// System registers by name: those that say what a processor is, and those that are mentioned elsewhere.
const NAMES: &[(RegisterId, &str)] = &[
    (system(3, 0, 0, 0, 0), "MIDR_EL1"),
    (MPIDR, "MPIDR_EL1"),
    (system(3, 0, 0, 0, 6), "REVIDR_EL1"),
    (system(3, 0, 0, 1, 0), "ID_PFR0_EL1"),
    (system(3, 0, 0, 1, 1), "ID_PFR1_EL1"),
    (system(3, 0, 0, 1, 2), "ID_DFR0_EL1"),
    (system(3, 0, 0, 4, 0), "ID_AA64PFR0_EL1"),
    (system(3, 0, 0, 4, 1), "ID_AA64PFR1_EL1"),
    (system(3, 0, 0, 4, 2), "ID_AA64PFR2_EL1"),
    (system(3, 0, 0, 4, 4), "ID_AA64ZFR0_EL1"),
    (system(3, 0, 0, 4, 5), "ID_AA64SMFR0_EL1"),
    (system(3, 0, 0, 5, 0), "ID_AA64DFR0_EL1"),
    (system(3, 0, 0, 5, 1), "ID_AA64DFR1_EL1"),
    (system(3, 0, 0, 6, 0), "ID_AA64ISAR0_EL1"),
    (system(3, 0, 0, 6, 1), "ID_AA64ISAR1_EL1"),
    (system(3, 0, 0, 6, 2), "ID_AA64ISAR2_EL1"),
    (system(3, 0, 0, 7, 0), "ID_AA64MMFR0_EL1"),
    (system(3, 0, 0, 7, 1), "ID_AA64MMFR1_EL1"),
    (system(3, 0, 0, 7, 2), "ID_AA64MMFR2_EL1"),
    (system(3, 0, 0, 7, 3), "ID_AA64MMFR3_EL1"),
    (CLIDR, "CLIDR_EL1"),
    (system(3, 1, 0, 0, 7), "AIDR_EL1"),
    (system(3, 3, 0, 0, 1), "CTR_EL0"),
    (SCTLR, "SCTLR_EL1"),
    (COUNTERS[0], "CNTVCT_EL0"),
    (COUNTERS[1], "CNTPCT_EL0"),
];

/// Which processor of the machine a vCPU is.
pub(super) const MPIDR: RegisterId = system(3, 0, 0, 0, 5);
/// The virtual and the physical counter. KVM has one offset of each for all vCPUs of a machine.
pub(super) const COUNTERS: [RegisterId; 2] = [system(3, 3, 14, 3, 2), system(3, 3, 14, 0, 1)];
/// The lengths of SVE vectors that a vCPU has: a pseudo-register, set before all others or not at all.
pub(super) const SVE_LENGTHS: RegisterId =
    RegisterId(KVM_REG_ARM64 | KVM_REG_SIZE_U512 | KVM_REG_ARM64_SVE as u64 | 0xffff);

/// The name of a register, as a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RegisterId(pub(super) u64);

impl RegisterId {
    /// Its bytes; `None` if it is no register of this architecture.
    fn size(self) -> Option<usize> {
        let size = 1_usize << ((self.0 & KVM_REG_SIZE_MASK) >> KVM_REG_SIZE_SHIFT);
        (self.0 >> ARCHITECTURE_SHIFT == KVM_REG_ARM64 >> ARCHITECTURE_SHIFT && size <= MAX_SIZE)
            .then_some(size)
    }

    /// Which kind of register: one of the kernel's numbers.
    fn kind(self) -> u32 {
        self.0 as u32 & KVM_REG_ARM_COPROC_MASK
    }

    /// A system register's op0, op1, CRn, CRm, op2.
    fn system(self) -> Option<[u32; 5]> {
        let bits = |shift: u32, count: u32| self.0 as u32 >> shift & ((1 << count) - 1);
        let is_system = self.kind() == KVM_REG_ARM64_SYSREG;
        is_system.then(|| [bits(14, 2), bits(11, 3), bits(7, 4), bits(3, 4), bits(0, 3)])
    }

    /// Returns true if it says what the processor is or can do, or what KVM offers the guest: the guest has seen it, and a
    /// vCPU that has run keeps it.
    pub(super) fn is_feature(self) -> bool {
        match self.kind() {
            KVM_REG_ARM_DEMUX | KVM_REG_ARM_FW | KVM_REG_ARM_FW_FEAT_BMAP => true,
            KVM_REG_ARM64_SVE => self == SVE_LENGTHS,
            // All but the cache that CCSIDR_EL1 shows.
            KVM_REG_ARM64_SYSREG => matches!(self.system(), Some([3, 0 | 1 | 3, 0, ..])),
            _ => false,
        }
    }
}

impl fmt::Display for RegisterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((_, name)) = NAMES.iter().find(|(id, _)| id == self) {
            return f.write_str(name);
        }
        let low = self.0 & 0xffff;
        match (self.system(), self.kind()) {
            (Some([op0, op1, crn, crm, op2]), _) => write!(f, "S{op0}_{op1}_C{crn}_C{crm}_{op2}"),
            (_, KVM_REG_ARM_CORE) => write!(f, "core register {low:#x}"),
            (_, KVM_REG_ARM_DEMUX) => write!(f, "CCSIDR_EL1 of cache {low:#x}"),
            (_, KVM_REG_ARM_FW) => write!(f, "firmware register {low:#x}"),
            (_, KVM_REG_ARM_FW_FEAT_BMAP) => write!(f, "firmware features {low:#x}"),
            _ if *self == SVE_LENGTHS => f.write_str("lengths of SVE vectors"),
            (_, KVM_REG_ARM64_SVE) => write!(f, "SVE register {low:#x}"),
            _ => write!(f, "register {:#x}", self.0),
        }
    }
}

/// Registers and their values, in the order of their names: of each the name, and as many bytes as the name says.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct RegisterFile(Vec<u8>);

impl fmt::Debug for RegisterFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegisterFile({} bytes)", self.0.len())
    }
}

impl RegisterFile {
    /// More bytes than a vCPU's registers have: 32 SVE vectors take 8 KiB, and there are some 500 others.
    pub(super) const MAX_LEN: usize = 1 << 16;

    /// All that a vCPU has.
    pub(super) fn read(vcpu: &VcpuFd) -> Result<Self, VmError> {
        let mut names = sys::register_names(vcpu).map_err(call("KVM_GET_REG_LIST"))?;
        names.sort_unstable();
        names.dedup();
        let mut bytes = Vec::new();
        for id in names.into_iter().map(RegisterId) {
            let size = id.size().ok_or(VmError::Unsupported { what: "a processor with such registers" })?;
            bytes.extend(id.0.to_le_bytes());
            let start = bytes.len();
            bytes.resize(start + size, 0);
            let value = bytes.get_mut(start..).unwrap_or_default();
            get(vcpu, id, value).map_err(call("KVM_GET_ONE_REG"))?;
        }
        Ok(Self(bytes))
    }

    /// What a state has as bytes.
    pub(super) fn from_bytes(bytes: &[u8]) -> Result<Self, StateError> {
        const FIELD: &str = "registers";
        let mut left = bytes;
        let mut last = None;
        while !left.is_empty() {
            let truncated = StateError::Truncated { field: FIELD };
            let Some((name, rest)) = left.split_first_chunk::<NAME>() else { return Err(truncated) };
            let id = RegisterId(u64::from_le_bytes(*name));
            let size = id.size().ok_or(StateError::Value { field: FIELD, value: id.0 })?;
            if last.is_some_and(|last| last >= id) {
                let reason = "a register is there twice, or not in its place";
                return Err(StateError::Inconsistent { field: FIELD, reason });
            }
            last = Some(id);
            left = rest.get(size..).ok_or(truncated)?;
        }
        Ok(Self(bytes.to_vec()))
    }

    pub(super) fn to_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Each register with its value.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RegisterId, &[u8])> {
        let mut left = self.0.as_slice();
        std::iter::from_fn(move || {
            let (name, rest) = left.split_first_chunk::<NAME>()?;
            let id = RegisterId(u64::from_le_bytes(*name));
            let (value, rest) = rest.split_at_checked(id.size()?)?;
            left = rest;
            Some((id, value))
        })
    }

    pub(super) fn get(&self, wanted: RegisterId) -> Option<&[u8]> {
        self.iter().find(|(id, _)| *id == wanted).map(|(_, value)| value)
    }

    /// A register of 64 bits.
    pub(super) fn get_u64(&self, id: RegisterId) -> Option<u64> {
        self.get(id)?.try_into().ok().map(u64::from_le_bytes)
    }

    /// The same with what `change` makes of each register; none is there twice.
    fn map<T: AsRef<[u8]>>(&self, mut change: impl FnMut(RegisterId, &[u8]) -> Option<T>) -> Self {
        let mut bytes = Vec::with_capacity(self.0.len());
        for (id, value) in self.iter() {
            if let Some(value) = change(id, value) {
                bytes.extend(id.0.to_le_bytes());
                bytes.extend(value.as_ref());
            }
        }
        Self(bytes)
    }

    /// The same without some.
    pub(super) fn without(&self, is_left_out: impl Fn(RegisterId) -> bool) -> Self {
        self.map(|id, value| (!is_left_out(id)).then(|| value.to_vec()))
    }

    /// The same without those that `other` has not.
    pub(super) fn common(&self, other: &Self) -> Self {
        let mut others = other.iter().map(|(id, _)| id).peekable();
        self.map(|id, value| {
            while others.next_if(|other| *other < id).is_some() {}
            others.next_if_eq(&id).map(|_| value.to_vec())
        })
    }

    /// The same with some registers of 64 bits so much greater.
    pub(super) fn increased(&self, which: &[RegisterId], by: u64) -> Self {
        self.map(|id, value| match <[u8; 8]>::try_from(value) {
            Ok(old) if which.contains(&id) => {
                Some(u64::from_le_bytes(old).wrapping_add(by).to_le_bytes().to_vec())
            }
            _ => Some(value.to_vec()),
        })
    }
}

/// Reads a register into as many bytes as it has.
pub(super) fn get(vcpu: &VcpuFd, id: RegisterId, value: &mut [u8]) -> errno::Result<()> {
    vcpu.get_one_reg(id.0, value).map(|_| ())
}

/// Writes a register of as many bytes.
pub(super) fn set(vcpu: &VcpuFd, id: RegisterId, value: &[u8]) -> errno::Result<()> {
    vcpu.set_one_reg(id.0, value).map(|_| ())
}

/// A value as people read it: most significant digit first.
pub(super) fn hex(value: &[u8]) -> String {
    let digits: String = value.iter().rev().map(|byte| format!("{byte:02x}")).collect();
    let short = digits.trim_start_matches('0');
    format!("0x{}", if short.is_empty() { "0" } else { short })
}

#[cfg(test)]
mod tests;
