//! Guests of 64-bit Arm.

use criterion::Criterion;
use ossature::legacy::AcpiPower;
use ossature::vmm::Registers;

/// Counts the 16 bits at the base up: ldrh w2, [x1]; add w2, w2, #1; strh w2, [x1]; b to the start.
pub const COUNT: &[u8] =
    &[0x22, 0x00, 0x40, 0x79, 0x42, 0x04, 0x00, 0x11, 0x22, 0x00, 0x00, 0x79, 0xfd, 0xff, 0xff, 0x17];

/// Where a guest starts.
pub fn registers(base: u64) -> Registers {
    let mut registers = Registers::el1(0x1000);
    registers.x[1] = base;
    registers
}

/// A button; it is PSCI that powers a machine off.
pub fn power() -> AcpiPower {
    AcpiPower::button_only("power")
}

/// Nothing: a message reaches a guest that has told the ITS of it.
pub fn more(_: &mut Criterion) {}
