//! What unit tests of the rest of the crate say of registers.

use super::Registers;

/// Registers of a vCPU that is at `address`, with a value in one that tells states apart.
pub(crate) fn registers_at(address: u16) -> Registers {
    Registers { rbx: 7, ..Registers::real_mode(address) }
}

/// How the registers of a vCPU that is at 0x1234 begin and go on as text.
pub(crate) const SHOWN: [&str; 2] = ["rax 0000000000000000  rbx", "rip 0000000000001234"];

/// How many interrupt controllers a wired line leads to: the lower ones to a PIC and the I/O APIC.
pub(crate) fn controllers_of(gsi: u32) -> usize {
    if gsi < 16 { 2 } else { 1 }
}
