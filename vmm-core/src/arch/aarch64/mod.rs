//! 64-bit Arm.

mod boot;
mod caches;
mod exception;
mod features;
mod gic;
mod gic_registers;
mod gic_state;
mod irq;
mod its;
mod its_state;
mod one_reg;
#[allow(unsafe_code)]
mod registers;
mod setup;
mod spaces;
mod suspend;
#[allow(unsafe_code)]
mod sys;
#[cfg(test)]
pub(crate) mod testing;
mod translate;
mod vcpu_state;
mod vm_state;

pub(crate) use boot::{LinuxOptions, load_linux};
pub(crate) use caches::{caches, with_processors};
pub(crate) use exception::{exception_registers, instruction_byte};
pub(crate) use gic::{Controllers, VCPUS_FIRST, create_controllers, has_messages};
pub(crate) use irq::{MESSAGES_HAVE_SENDERS, WIRED_LINES, WiredLine, line_number, wired_lines};
pub(crate) use registers::{KvmRegisters, Registers, forget_in_page, leave_in_page, left_in_page};
pub(crate) use setup::{
    ArchConfig, HAS_DIRTY_RINGS, HostFacts, NEWEST, REQUIRED, address_bits, complete_vcpu,
    has_performance_monitors, init_vcpu, notify_paused, prepare_vm,
};
pub(crate) use spaces::{
    HAS_PORTS, NUMBERS_WITH_GAPS, cpu_id, high_window_space, is_reserved, line_space, lines, memory_space,
    platform_nodes, vcpu_id, window_space,
};
pub(crate) use suspend::answer_system_event;
pub(crate) use vcpu_state::{VcpuAccess, VcpuParts, check_states};
pub(crate) use vm_state::VmParts;

/// There is no KVM for this architecture that emulates guests.
pub(crate) fn time_per_instruction(_: &crate::Kvm) -> Result<Option<std::time::Duration>, crate::VmError> {
    Ok(None)
}

/// What this crate's users see of the architecture.
pub(crate) mod public {
    pub use super::registers::Registers;
}
