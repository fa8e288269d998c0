//! Code for 64-bit Arm, and where it starts: at EL1, with translation off.

use ossature_bus::{Device, Effect, VmRequest};
use ossature_core::{Registers, Step, Vcpu};
use ossature_legacy::Serial;
use ossature_legacy::backend::Backend;
use ossature_memory::Ram;

use super::{CODE, DATA, HALT, MMIO};

/// What code is made of.
pub type Unit = u32;

/// Runs for ever, without an exit.
pub const SPIN: &[u32] = &[0x1400_0000]; // b .
/// Waits for interrupts for ever, in the kernel.
pub const WAIT: &[u32] = &[0xd503_207f, 0x17ff_ffff]; // wfi; b to it
/// Counts up the 32 bits at DATA.
pub const COUNT: &[u32] = &[
    0xb940_0282, // ldr w2, [x20]
    0x1100_0442, // add w2, w2, #1
    0xb900_0282, // str w2, [x20]
    0x17ff_fffd, // b to the start
];
/// Reads 32 bits at the start of the registers and ends its run, twice.
pub const READ_TWICE: &[u32] = &[
    0xb940_0262, // ldr w2, [x19]
    END,
    0xb940_0262, // ldr w2, [x19]
    END,
];
/// Writes 7 there, reads it, writes what it has read at 8, and ends its run.
pub const WRITE_AND_READ: &[u32] = &[
    0x5280_00e2, // mov w2, #7
    0xb900_0262, // str w2, [x19]
    0xb940_0262, // ldr w2, [x19]
    0xb900_0a62, // str w2, [x19, #8]
    END,
];
/// Writes 5 and 6 (32 bits) at 0x50, 7 (8 bits) at 0x60, and ends its run; again and again.
pub const RING: &[u32] = &[
    0x5280_00a2, // mov w2, #5
    0xb900_5262, // str w2, [x19, #0x50]
    0x5280_00c2, // mov w2, #6
    0xb900_5262, // str w2, [x19, #0x50]
    0x5280_00e2, // mov w2, #7
    0x3901_8262, // strb w2, [x19, #0x60]
    END,
    0x17ff_fff9, // b to the start
];
/// Ends a run; another one goes on behind it.
pub const END: u32 = 0xb900_02bf; // str wzr, [x21]

/// Code as it is in memory.
pub fn bytes(code: &[u32]) -> Vec<u8> {
    code.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// EL1 at [`CODE`], with x19 at [`MMIO`], x20 at [`DATA`] and x21 at [`HALT`].
pub fn start() -> Registers {
    let mut registers = Registers::el1(CODE.into());
    registers.x[19] = MMIO;
    registers.x[20] = DATA;
    registers.x[21] = HALT;
    registers
}

/// There is no instruction that the kernel leaves its waiting to this process for: a write to [`HALT`] ends a run.
pub fn halts(step: Step) -> bool {
    step == Step::Effect(Effect::Vm(VmRequest::Shutdown))
}

/// Completes the write that has ended a run: the program counter is then behind it, and registers can be set.
pub fn complete(vcpu: &mut Vcpu) {
    vcpu.kicker().kick();
    assert_eq!(vcpu.run_once().unwrap(), Step::Interrupted);
}

/// Keeps the pages of RAM from being another guest's: QEMU's emulated processor (7.2) now and then goes on with what it has
/// translated of a page that has been cleared since.
pub fn keep(ram: &Ram) {
    std::mem::forget(ram.dma());
}

/// As they are.
pub fn ready(registers: Registers) -> Registers {
    registers
}

/// Prints "ok\n" on a PL011 that is the first of the devices, then powers off by PSCI.
pub const PRINT_AND_POWER_OFF: &[u32] = &[
    0x5280_0de2, // mov w2, #'o'
    0xb900_0262, // str w2, [x19]
    0x5280_0d62, // mov w2, #'k'
    0xb900_0262, // str w2, [x19]
    0x5280_0142, // mov w2, #'\n'
    0xb900_0262, // str w2, [x19]
    0x52b0_8000, // mov w0, #0x84000000
    0x7280_0100, // movk w0, #8
    0xd400_0002, // hvc #0
];

/// The serial port that it prints on.
pub fn serial(id: &str, output: Backend) -> impl Device {
    Serial::pl011(id, output)
}

/// What else it is powered off by: nothing.
pub fn power() -> Vec<Box<dyn Device>> {
    Vec::new()
}
