//! The end of a vCPU that cannot go on, with what one needs to find out why.

use std::fmt;

use crate::Registers;

/// Why a vCPU cannot go on.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CrashReason {
    /// A fault while the guest handled a fault while it handled a fault. Guests also use it on purpose, to
    /// reset a machine that has no other way.
    TripleFault,
    /// KVM has to carry out an instruction itself and does not know it.
    Emulation,
    /// KVM gave up for another reason (`KVM_EXIT_INTERNAL_ERROR`).
    Internal {
        /// KVM's number for it.
        suberror: u32,
        /// What KVM adds, to be read with its sources.
        data: Vec<u64>,
    },
    /// The processor refused to enter the guest (`KVM_EXIT_FAIL_ENTRY`).
    FailedEntry {
        /// The processor's reason, as its manual numbers them.
        hardware_reason: u64,
    },
    /// The guest touched memory that the host cannot provide (`KVM_EXIT_MEMORY_FAULT`).
    MemoryFault {
        /// First guest-physical address.
        address: u64,
        /// Length in bytes.
        size: u64,
    },
    /// The guest accessed a device by an instruction that an Arm processor does not decode for KVM (`KVM_EXIT_ARM_NISV`):
    /// one of a pair of registers, with writeback, or of the vector registers.
    UndecodedAccess {
        /// The guest-physical address.
        address: u64,
        /// What the processor says of it: the syndrome's lower bits (ISS of ESR_EL2).
        syndrome: u64,
    },
    /// KVM left the guest for a reason that was not asked for.
    UnexpectedExit {
        /// KVM's number for it.
        exit_reason: u32,
    },
}

impl fmt::Display for CrashReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TripleFault => f.write_str("triple fault"),
            Self::Emulation => f.write_str("an instruction that KVM cannot emulate"),
            Self::Internal { suberror, data } => write!(f, "KVM internal error {suberror}, data {data:x?}"),
            Self::FailedEntry { hardware_reason } => {
                write!(f, "the processor refused to enter the guest, reason {hardware_reason:#x}")
            }
            Self::MemoryFault { address, size } => {
                write!(f, "the host cannot provide guest memory {address:#x}+{size:#x}")
            }
            Self::UndecodedAccess { address, syndrome } => write!(
                f,
                "an access to {address:#x} by an instruction that the processor does not decode, syndrome {syndrome:#x}; \
                 devices are reached by loads and stores of one general register, without writeback"
            ),
            Self::UnexpectedExit { exit_reason } => write!(f, "unexpected exit {exit_reason} from KVM"),
        }
    }
}

/// A vCPU that cannot go on: the reason, its registers and the instruction it was at.
///
/// After a triple fault, AMD hosts report the registers as they are after INIT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct VcpuCrash {
    /// Which vCPU.
    pub index: u32,
    /// Why.
    pub reason: CrashReason,
    /// Its registers, where the host still gives them.
    pub registers: Option<Registers>,
    /// What system registers say of the last exception, by their names; empty where `registers` have it.
    pub exception: Vec<(&'static str, u64)>,
    /// The bytes of the instruction at the program counter, on x86_64 up to 15; empty where it does not point to RAM.
    pub code: Vec<u8>,
}

impl fmt::Display for VcpuCrash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "vCPU {}: {}", self.index, self.reason)?;
        if let Some(registers) = &self.registers {
            write!(f, "\n{registers}")?;
        }
        for (n, (name, value)) in self.exception.iter().enumerate() {
            write!(f, "{}{name} {value:016x}", if n % 3 == 0 { "\n" } else { "  " })?;
        }
        write!(f, "\ncode")?;
        if self.code.is_empty() {
            write!(f, " not readable")?;
        }
        for byte in &self.code {
            write!(f, " {byte:02x}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
