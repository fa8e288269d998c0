//! The state of a paused machine, without its memory.

use ossature_bus::Handover;

use crate::{VcpuState, VmState};

/// The state of a paused machine, without its memory.
#[derive(Debug)]
pub struct MachineState {
    pub(super) vcpus: Vec<VcpuState>,
    /// Interrupt controllers, timers, clock.
    pub(super) vm: VmState,
    /// The devices that have a state, by id.
    pub(super) devices: Vec<(String, Handover<'static>)>,
}

impl MachineState {
    /// The devices that have a state, by id.
    pub fn devices(&self) -> impl Iterator<Item = (&str, &Handover<'static>)> {
        self.devices.iter().map(|(id, handover)| (id.as_str(), handover))
    }
}
