//! How a machine ends.

use std::fmt;
use std::sync::Arc;

use crate::{VcpuError, error_chain};

/// Why a machine stopped.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Outcome {
    /// The guest powered off. (A kernel that panics does not: where it does not report that, it resets the machine or
    /// hangs.)
    Shutdown,
    /// The guest asked for a reset, and the machine was built to end then: see [`OnReset`](super::OnReset).
    ///
    /// Why it did, the machine does not know. A reboot on request and a kernel's panic with `panic=-1` write the same
    /// value to the same register. [`MachineHandle::guest_panicked`](super::MachineHandle::guest_panicked) tells of
    /// those panics that the guest reports, by a driver that Linux may have as a module: not yet loaded when there is no
    /// root file system. So this is not the good end that [`Shutdown`](Self::Shutdown) is.
    Reset,
    /// The VMM stopped it.
    Stopped,
    /// A vCPU executed HLT where nothing can wake it: the end of a guest of a few instructions on a machine
    /// without interrupt controllers.
    Halted,
    /// A vCPU could not go on.
    Crashed(Arc<VcpuError>),
    /// A part of the machine could not go on, for a reason on the host's side.
    Failed {
        /// A device's id, or `vcpuN`.
        part: String,
        /// What failed.
        reason: String,
    },
    /// The code of a part panicked: a bug. No other machine is touched.
    Panicked {
        /// A device's id, `vcpuN`, or what the VMM called the handler.
        part: String,
        /// What the panic said.
        message: String,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Shutdown => f.write_str("the guest powered off"),
            Self::Reset => f.write_str("the guest asked for a reset"),
            Self::Stopped => f.write_str("the machine was stopped"),
            Self::Halted => f.write_str("the guest halted for good"),
            Self::Crashed(error) => f.write_str(&error_chain(&**error)),
            Self::Failed { part, reason } => write!(f, "{part} failed: {reason}"),
            Self::Panicked { part, message } => write!(f, "{part} panicked: {message}"),
        }
    }
}

/// Two crashes are equal if they say the same.
impl PartialEq for Outcome {
    fn eq(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other) && self.to_string() == other.to_string()
    }
}
