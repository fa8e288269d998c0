//! The GTDT: the interrupts of the generic timer (ACPI 6.5, 5.2.25).

use acpi_tables::AmlSink;

use crate::aarch64::{PRIVATE, TIMERS};

/// There is no memory-mapped counter.
const NO_ADDRESS: u64 = u64::MAX;
/// Level-triggered, active high; keeps counting while processors idle.
const ALWAYS_ON: u32 = 1 << 2;

pub(super) fn body(out: &mut Vec<u8>) {
    let [secure, non_secure, virt, hypervisor] = TIMERS.map(|number| PRIVATE + number);
    out.qword(NO_ADDRESS);
    out.dword(0);
    for timer in [secure, non_secure, virt, hypervisor] {
        out.dword(timer);
        out.dword(ALWAYS_ON);
    }
    out.qword(NO_ADDRESS);
    // No timers of the platform's own, and no virtual timer at EL2.
    let (count, offset, virtual_el2, virtual_el2_flags) = (0, 0, 0, 0);
    for field in [count, offset, virtual_el2, virtual_el2_flags] {
        out.dword(field);
    }
}
