//! The model-specific registers whose reset values are not what a booted machine would have.

use kvm_bindings::kvm_msr_entry;

/// `IA32_MISC_ENABLE` (SDM vol. 4, 2.1).
const MISC_ENABLE: u32 = 0x1a0;
/// Fast strings: Linux takes `rep movs` for slow on Intel processors without this bit.
const MISC_ENABLE_FAST_STRING: u64 = 1;

/// `IA32_MTRR_DEF_TYPE` (SDM vol. 3, 12.11.2.1).
const MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs on.
const MTRR_ENABLE: u64 = 1 << 11;
/// Memory that no range register covers is write-back.
const MTRR_WRITE_BACK: u64 = 6;

/// What firmware would have set before it hands over to an operating system.
pub(crate) fn boot_msrs() -> [kvm_msr_entry; 2] {
    let entry = |index, data| kvm_msr_entry { index, data, reserved: 0 };
    [entry(MISC_ENABLE, MISC_ENABLE_FAST_STRING), entry(MTRR_DEF_TYPE, MTRR_ENABLE | MTRR_WRITE_BACK)]
}
