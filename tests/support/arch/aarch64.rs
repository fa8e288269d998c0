//! What a machine of the tests has on aarch64.

use ossature::bus::Device;
use ossature::legacy::{AcpiPower, Backend, Pl011, Pl031, Serial};

/// What the guest calls the root bus and its configuration space in `/proc/iomem`.
pub const PCI: [&str; 2] = ["pcie@", "PCI ECAM"];

/// With these arguments guests learn of their machine by ACPI, which tells them of devices that come and go, and of a
/// button that Debian's cloud kernel has a driver of.
pub const ACPI: [&str; 2] = ["--tables", "acpi"];

/// How often they do, on a processor that is emulated twice.
pub const TURNS: u32 = 10;

/// How the command line ends that the example `rust_vmm` takes from linux-loader: as it was given.
pub const BY_LOADER: &str = " panic=-1";

/// Writes an L to the lamp of the example `rust_vmm`, and reads it.
pub const LAMP: &str = "devmem 0xd0100000 8 0x4c; [ $(devmem 0xd0100000 8) = 0x4C ]; echo L";

/// How many children a fork has, on a processor that is emulated twice.
pub const FORKS: usize = 4;

/// Makes the kernel print from the start, so that a test need not wait for the boot.
pub const EARLY: &str = "earlycon console=ttyAMA0 loglevel=7";
/// What it prints first.
pub const FIRST_WORDS: &str = "Booting Linux on physical CPU";

/// What Linux says where the serial port that its command line names is not there.
pub const NO_SERIAL_PORT: [&str; 1] = ["Warning: unable to open an initial console."];

/// What the driver of the clock is called.
pub const RTC: &str = "rtc-pl031";

/// The console's serial port.
pub type Console = Serial<Pl011>;

pub fn serial(line: Backend) -> Console {
    Serial::pl011("com1", line)
}

/// A clock and the power button.
pub fn board() -> Vec<Box<dyn Device>> {
    vec![Box::new(Pl031::new("rtc")), Box::new(AcpiPower::button_only("power"))]
}
