//! The clock of a guest that goes on from a snapshot.

use super::state::MachineState;
use crate::{VcpuState, VmError, VmState};

/// What the clock of a guest does that goes on from a snapshot: kvmclock and the TSC, with the timer that
/// has a deadline by it; on aarch64 the counter of the generic timer. Other timers go on where they were. The real-time clock is
/// the host's at any time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum GuestClock {
    /// It goes on where it was: for the guest, no time has passed, and no timeout runs out all at once. Its wall clock is
    /// behind until it asks the real-time clock or an NTP server.
    #[default]
    Continue,
    /// It is as much later as the host's wall clock is by now. The guest's wall clock is right, if it was, and what has
    /// run out meanwhile runs out at once. A host whose clock was set back counts as no time. A snapshot of a release that
    /// did not write the time into it is refused.
    CatchUp,
}

impl GuestClock {
    /// `state` as it is now, if that is not what was saved.
    pub(super) fn now(self, state: &MachineState) -> Result<Option<(VmState, Vec<VcpuState>)>, VmError> {
        if self == Self::Continue {
            return Ok(None);
        }
        let reason = "it does not say when it was saved: let it go on where it was";
        let age = state.vm.age().ok_or(VmError::InvalidState { part: "clock", reason })?;
        let (mut vm, mut vcpus) = (state.vm.clone(), state.vcpus.clone());
        vm.advance(age);
        vcpus.iter_mut().for_each(|vcpu| vcpu.advance(age));
        Ok(Some((vm, vcpus)))
    }
}
