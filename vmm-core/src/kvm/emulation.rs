//! A KVM that does not have the processor run its guests.

use std::fmt;
use std::time::Duration;

use super::Kvm;
use crate::{VmError, arch};

/// Slower than this, it is not the processor that executes the instructions.
const SLOW: Duration = Duration::from_nanos(100);

/// This KVM emulates guests' kernels, instruction by instruction. Small guests run on it; a stock Linux kernel, whose
/// boot takes more than a thousand million instructions, takes many minutes at best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Emulation {
    /// The time for one instruction, as measured.
    pub per_instruction: Duration,
}

impl Emulation {
    pub(super) fn of(kvm: &Kvm) -> Result<Option<Self>, VmError> {
        let measured = arch::time_per_instruction(kvm)?;
        Ok(measured.filter(|time| *time >= SLOW).map(|per_instruction| Self { per_instruction }))
    }
}

impl fmt::Display for Emulation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "this host's KVM emulates its guests' kernels ({} ns for each instruction): a stock Linux kernel \
             takes many minutes to boot on it, if it does",
            self.per_instruction.as_nanos()
        )
    }
}
