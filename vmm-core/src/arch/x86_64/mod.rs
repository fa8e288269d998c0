//! x86: registers, CPUID, MSRs, complete states, interrupt routes, set-up.

mod boot;
mod config;
mod cpuid;
mod features;
mod guest_cpuid;
mod host;
mod irq;
mod msrs;
#[allow(unsafe_code)]
mod native;
#[allow(unsafe_code)]
mod page;
#[allow(unsafe_code)]
mod plain;
mod preflight;
mod registers;
mod setup;
mod spaces;
#[cfg(test)]
pub(crate) mod testing;
mod topology;
mod vcpu_state;
mod vm_state;
#[allow(unsafe_code)]
mod xsave;

pub(crate) use boot::{LinuxOptions, load_linux};
pub(crate) use config::ArchConfig;
pub(crate) use host::HostFacts;
pub(crate) use irq::{MESSAGES_HAVE_SENDERS, WIRED_LINES, WiredLine, line_number, wired_lines};
pub(crate) use page::{KvmRegisters, forget_in_page, leave_in_page, left_in_page};
pub(crate) use preflight::time_per_instruction;
pub(crate) use registers::Registers;
pub(crate) use setup::{
    Controllers, HAS_DIRTY_RINGS, NEWEST, NUMBERS_WITH_GAPS, REQUIRED, VCPUS_FIRST, address_bits, caches,
    complete_vcpu, create_controllers, exception_registers, has_messages, has_performance_monitors,
    init_vcpu, instruction_byte, notify_paused, prepare_vm, vcpu_id, with_processors,
};
pub(crate) use spaces::{
    HAS_PORTS, cpu_id, high_window_space, is_reserved, line_space, lines, memory_space, platform_nodes,
    window_space,
};
pub(crate) use vcpu_state::{VcpuAccess, VcpuParts, check_states};
pub(crate) use vm_state::VmParts;

/// There is no system event that is not the machine's.
pub(crate) fn answer_system_event(
    _: u32,
    _: VcpuAccess<'_>,
    _: impl FnOnce(u64, u64) -> bool,
) -> Result<bool, crate::VmError> {
    Ok(false)
}

/// What this crate's users see of the architecture.
pub(crate) mod public {
    pub use super::cpuid::{Cpuid, CpuidError, CpuidRegisters};
    pub use super::registers::{Registers, SegmentRegister, Table};
}
