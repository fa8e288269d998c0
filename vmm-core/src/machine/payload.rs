//! What a machine runs: a Linux kernel, or whatever else the VMM puts into guest memory.

use std::error::Error;

use ossature_boot::Platform;
use ossature_memory::GuestMmap;

use crate::Registers;

/// A reason for which a payload cannot be loaded.
pub type PayloadError = Box<dyn Error + Send + Sync>;

/// Fills guest memory before the machine starts, and again with each reset.
pub trait Payload: Send {
    /// Puts everything into `memory`, which reads as zero, and says how vCPU 0 starts. `platform` is what there
    /// is to describe to the guest.
    fn load(&mut self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError>;
}

impl<F> Payload for F
where
    F: FnMut(&GuestMmap, &Platform) -> Result<Registers, PayloadError> + Send,
{
    fn load(&mut self, memory: &GuestMmap, platform: &Platform) -> Result<Registers, PayloadError> {
        self(memory, platform)
    }
}
