//! Code for x86, and where it starts: in real mode.

use ossature_bus::Device;
use ossature_core::{Registers, Step, Vcpu};
use ossature_legacy::backend::Backend;
use ossature_legacy::{AcpiPower, Serial, SerialPort};
use ossature_memory::Ram;

use super::{CODE, MMIO};

/// What code is made of.
pub type Unit = u8;

/// The local APIC.
pub const LAPIC: u64 = 0xfee0_0000;

/// Runs for ever, without an exit.
pub const SPIN: &[u8] = &[0xeb, 0xfe]; // jmp $
/// Waits for interrupts for ever: with interrupt controllers, in the kernel.
pub const WAIT: &[u8] = &[0xfb, 0xf4, 0xeb, 0xfd]; // sti; hlt; jmp to the hlt
/// Counts up the 32 bits at DATA.
pub const COUNT: &[u8] = &[0x66, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9]; // inc dword [0x2000]; jmp to it
/// Reads 32 bits at the start of the registers and ends its run, twice.
pub const READ_TWICE: &[u8] = &[0x64, 0x66, 0xa1, 0, 0, 0xf4, 0x64, 0x66, 0xa1, 0, 0, 0xf4]; // mov eax, fs:[0]; hlt
/// Writes 7 there, reads it, writes what it has read at 8, and ends its run.
pub const WRITE_AND_READ: &[u8] = &[
    0x64, 0x66, 0xc7, 0x06, 0x00, 0x00, 0x07, 0x00, 0x00, 0x00, // mov dword fs:[0], 7
    0x64, 0x66, 0xa1, 0x00, 0x00, // mov eax, fs:[0]
    0x64, 0x66, 0xa3, 0x08, 0x00, // mov fs:[8], eax
    0xf4, // hlt
];
/// Writes 5 and 6 (32 bits) at 0x50, 7 (8 bits) at 0x60, and ends its run; once more.
pub const RING: &[u8] = &[
    0x64, 0x66, 0xc7, 0x06, 0x50, 0x00, 0x05, 0x00, 0x00, 0x00, // mov dword fs:[0x50], 5
    0x64, 0x66, 0xc7, 0x06, 0x50, 0x00, 0x06, 0x00, 0x00, 0x00, // mov dword fs:[0x50], 6
    0x64, 0xc6, 0x06, 0x60, 0x00, 0x07, // mov byte fs:[0x60], 7
    0xf4, // hlt
    0xeb, 0xe3, // jmp to the start
];

/// Code as it is in memory.
pub fn bytes(code: &[u8]) -> Vec<u8> {
    code.to_vec()
}

/// Real mode at [`CODE`], with FS at [`MMIO`].
pub fn start() -> Registers {
    ready(Registers::real_mode(CODE))
}

/// HLT ends a run of a guest without interrupt controllers.
pub fn halts(step: Step) -> bool {
    step == Step::Halted
}

/// A run that HLT has ended needs nothing.
pub fn complete(_: &mut Vcpu) {}

/// RAM may go with its guest.
pub fn keep(_: &Ram) {}

/// With FS at [`MMIO`] unless it is elsewhere.
pub fn ready(mut registers: Registers) -> Registers {
    if registers.fs.base == 0 {
        registers.fs.base = MMIO;
    }
    registers
}

/// Prints "ok\n" on COM1, then writes S5 with sleep-enable to the ACPI sleep register.
pub const PRINT_AND_POWER_OFF: &[u8] = &[
    0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xb0, b'o', 0xee, // mov al, 'o'; out dx, al
    0xb0, b'k', 0xee, // the same with 'k'
    0xb0, b'\n', 0xee, // and a newline
    0xba, 0x00, 0x06, // mov dx, 0x600
    0xb0, 0x34, 0xee, // mov al, 0x34; out dx, al
    0xf4, // hlt
];

/// The serial port that it prints on.
pub fn serial(id: &str, output: Backend) -> impl Device {
    Serial::new(id, SerialPort::COM1, output)
}

/// What else it is powered off by.
pub fn power() -> Vec<Box<dyn Device>> {
    vec![Box::new(AcpiPower::new("power"))]
}
