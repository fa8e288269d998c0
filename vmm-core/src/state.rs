//! The states of vCPUs and machines, to be written back later.

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use crate::arch;

/// The complete state of a vCPU: all its registers, and what is pending. See [`Vcpu::state`](crate::Vcpu::state).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VcpuState(pub(crate) VcpuStateOf);

/// By back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VcpuStateOf {
    Kvm(Box<arch::VcpuParts>),
    Scripted(Box<arch::Registers>),
}

/// What the hypervisor keeps of a machine beside its vCPUs: interrupt controllers, timer and the clock that guests see.
/// See [`Vm::state`](crate::Vm::state).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmState(pub(crate) VmStateOf);

/// By back end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum VmStateOf {
    Kvm(Box<arch::VmParts>),
    /// The level lines that are asserted.
    Scripted(Vec<u32>),
}

const SCRIPTED_VCPU: &str = "org.ossature.vcpu.scripted";
const SCRIPTED_VM: &str = "org.ossature.vm.scripted";
const VERSION: u16 = 1;
const LINES: Field = Field::new(1, "asserted lines");
const LINE: Field = Field::new(1, "line");
/// More lines than any platform wires.
const MAX_LINES: usize = 4096;

impl VcpuState {
    /// The state as bytes, for a file.
    pub fn to_saved(&self) -> SavedState<'static> {
        match &self.0 {
            VcpuStateOf::Kvm(parts) => parts.to_saved(),
            VcpuStateOf::Scripted(registers) => {
                let mut fields = Encoder::new(SCRIPTED_VCPU, VERSION);
                registers.encode(&mut fields);
                fields.finish()
            }
        }
    }

    /// The state that has these bytes, which may come from anywhere. What of it the processor cannot be in is refused by
    /// [`Vcpu::set_state`](crate::Vcpu::set_state).
    pub fn from_saved(state: &SavedState<'_>) -> Result<Self, StateError> {
        if state.kind != SCRIPTED_VCPU {
            return Ok(Self(VcpuStateOf::Kvm(Box::new(arch::VcpuParts::from_saved(state)?))));
        }
        let mut fields = Decoder::new(state, SCRIPTED_VCPU, 1..=VERSION)?;
        let registers = arch::Registers::decode(&mut fields)?;
        fields.finish()?;
        Ok(Self(VcpuStateOf::Scripted(Box::new(registers))))
    }
}

impl VcpuState {
    /// Has its counter of time be so many nanoseconds later.
    pub(crate) fn advance(&mut self, by: u64) {
        if let VcpuStateOf::Kvm(parts) = &mut self.0 {
            parts.advance(by);
        }
    }
}

impl VmState {
    /// How many nanoseconds ago it was read, by the host's wall clock; `None` if it does not say.
    pub(crate) fn age(&self) -> Option<u64> {
        match &self.0 {
            VmStateOf::Kvm(parts) => parts.age(),
            // It has no clock.
            VmStateOf::Scripted(_) => Some(0),
        }
    }

    /// Has the guest's clock be so many nanoseconds later.
    pub(crate) fn advance(&mut self, by: u64) {
        if let VmStateOf::Kvm(parts) = &mut self.0 {
            parts.advance(by);
        }
    }

    /// The state as bytes, for a file.
    pub fn to_saved(&self) -> SavedState<'static> {
        match &self.0 {
            VmStateOf::Kvm(parts) => parts.to_saved(),
            VmStateOf::Scripted(lines) => {
                let mut fields = Encoder::new(SCRIPTED_VM, VERSION);
                fields.list(LINES, lines, |fields, line| _ = fields.u32(LINE, *line));
                fields.finish()
            }
        }
    }

    /// The state that has these bytes, which may come from anywhere. What of it the machine cannot be in is refused by
    /// [`Vm::set_state`](crate::Vm::set_state).
    pub fn from_saved(state: &SavedState<'_>) -> Result<Self, StateError> {
        if state.kind != SCRIPTED_VM {
            return Ok(Self(VmStateOf::Kvm(Box::new(arch::VmParts::from_saved(state)?))));
        }
        let mut fields = Decoder::new(state, SCRIPTED_VM, 1..=VERSION)?;
        let lines = fields.list(LINES, MAX_LINES, |fields| fields.u32(LINE))?;
        fields.finish()?;
        Ok(Self(VmStateOf::Scripted(lines)))
    }
}

#[cfg(test)]
mod tests;
