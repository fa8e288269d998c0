//! Making a vCPU leave the guest from another thread.

use std::fmt;
use std::sync::Arc;

use vmm_sys_util::signal::SIGRTMIN;

/// The signal that interrupts `KVM_RUN`, and what keeps it from doing anything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum KickSignal {
    /// The vCPU's thread blocks the signal (at the first [`Vcpu::run_once`](crate::Vcpu::run_once) on it) and
    /// only `KVM_RUN` lets it through. No handler is needed and nothing in the process changes but that
    /// thread's mask. Each entry to the guest costs two changes of the mask, some tens of nanoseconds.
    Masked(i32),
    /// The process has a handler for the signal, which may do nothing; see
    /// [`install_kick_handler`](crate::install_kick_handler). The vCPU's thread has the signal unblocked, at the first
    /// [`Vcpu::run_once`](crate::Vcpu::run_once) on it. Entering the guest costs nothing more.
    Handled(i32),
}

impl Default for KickSignal {
    fn default() -> Self {
        Self::Masked(SIGRTMIN())
    }
}

/// Makes a vCPU leave the guest. Any number of threads may hold one, for as long as they like.
#[derive(Clone)]
pub struct Kicker(Arc<dyn Kick>);

/// What a back end does to interrupt its vCPU.
pub(crate) trait Kick: Send + Sync {
    fn kick(&self);
}

impl Kicker {
    pub(crate) fn new(kick: Arc<dyn Kick>) -> Self {
        Self(kick)
    }

    /// Makes the [`run_once`](crate::Vcpu::run_once) that is under way, or else the next one, return
    /// [`Step::Interrupted`](crate::Step::Interrupted). Returns at once; several kicks may end in one
    /// interruption. Kicking a vCPU that is gone does nothing.
    pub fn kick(&self) {
        self.0.kick();
    }
}

impl fmt::Debug for Kicker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Kicker")
    }
}
