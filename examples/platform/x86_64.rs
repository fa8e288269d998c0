//! What a machine has on x86_64 beside its virtio devices. Each example takes a part of it.
#![allow(dead_code)]

use ossature::boot::Platform;
use ossature::bus::Device;
use ossature::legacy::{AcpiPower, Backend, FwCfg, I8042, Rtc, Serial, SerialPort};
use ossature::vmm::Registers;
use ossature::vmm::machine::Linux;

/// What Linux calls the serial port.
pub const CONSOLE: &str = "ttyS0";
/// What spares Linux a search for devices that are not there.
pub const CMDLINE: &str = "8250.nr_uarts=1 reboot=k";
/// ACPI tables tell the guest of the clock.
pub const ACPI_HAS_CLOCK: bool = true;

/// The console's serial port: COM1.
pub fn serial(line: Backend) -> Serial {
    Serial::new("serial", SerialPort::COM1, line)
}

pub fn clock() -> Rtc {
    Rtc::new("rtc")
}

/// Power off, and the power button.
pub fn power() -> AcpiPower {
    AcpiPower::new("power")
}

/// What else Linux looks for: the keyboard controller, by which it resets the machine.
pub fn rest() -> Vec<Box<dyn Device>> {
    vec![Box::new(I8042::new("i8042"))]
}

/// A device for files, at ports.
pub fn fw_cfg() -> FwCfg {
    FwCfg::new("fw-cfg")
}

/// A kernel that is told of its machine by ACPI tables, as all are.
pub fn by_acpi(linux: Linux) -> Linux {
    linux
}

/// How a few bytes of code in real mode begin.
pub fn start(code: u16, _: &Platform) -> Registers {
    Registers::real_mode(code)
}
