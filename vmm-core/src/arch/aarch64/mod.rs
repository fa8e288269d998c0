//! 64-bit Arm. What of it is not there yet is refused with [`VmError::Unsupported`](crate::VmError::Unsupported): complete
//! states of vCPUs and machines, and so snapshots and resets in place.

mod boot;
mod exception;
mod gic;
mod irq;
mod its;
#[allow(unsafe_code)]
mod registers;
mod setup;
mod spaces;
mod state;
#[cfg(test)]
pub(crate) mod testing;
mod translate;

pub(crate) use boot::{LinuxOptions, load_linux};
pub(crate) use exception::{exception_registers, instruction_byte};
pub(crate) use gic::{Controllers, VCPUS_FIRST, create_controllers};
pub(crate) use irq::{MESSAGES_HAVE_SENDERS, WIRED_LINES, WiredLine, line_number, wired_lines};
pub(crate) use registers::{KvmRegisters, Registers, forget_in_page, leave_in_page, left_in_page};
pub(crate) use setup::{
    ArchConfig, HostFacts, NEWEST, REQUIRED, address_bits, init_vcpu, notify_paused, prepare_vm,
};
pub(crate) use spaces::{
    HAS_PORTS, cpu_id, high_window_space, is_reserved, line_space, lines, memory_space, platform_nodes,
    window_space,
};
pub(crate) use state::{VcpuAccess, VcpuParts, VmParts};

/// There is no KVM for this architecture that emulates guests.
pub(crate) fn time_per_instruction(_: &crate::Kvm) -> Result<Option<std::time::Duration>, crate::VmError> {
    Ok(None)
}

/// What this crate's users see of the architecture.
pub(crate) mod public {
    pub use super::registers::Registers;
}
