//! What unit tests of the rest of the crate say of registers.

use super::Registers;

/// Registers of a vCPU that is at `address`, with a value in one that tells states apart.
pub(crate) fn registers_at(address: u16) -> Registers {
    let mut registers = Registers::el1(address.into());
    registers.x[1] = 7;
    registers
}

/// How the registers of a vCPU that is at 0x1234 begin and go on as text.
pub(crate) const SHOWN: [&str; 2] = ["x0  0000000000000000  x1", "pc  0000000000001234"];

/// How many interrupt controllers a wired line leads to.
pub(crate) fn controllers_of(_: u32) -> usize {
    1
}
