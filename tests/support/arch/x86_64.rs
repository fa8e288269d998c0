//! What a machine of the tests has on x86_64.

use ossature::bus::Device;
use ossature::legacy::{AcpiPower, Backend, Rtc, Serial, SerialPort};

/// What the guest calls the root bus and its configuration space in `/proc/iomem`.
pub const PCI: [&str; 2] = ["PCI Bus 0000:00", "PCI MMCONFIG 0000 [bus 00-00]"];

/// With these arguments guests learn of their machine by ACPI: there is nothing else.
pub const ACPI: [&str; 0] = [];

/// How often they do.
pub const TURNS: u32 = 50;

/// How the command line ends that the example `rust_vmm` has linux-loader write.
pub const BY_LOADER: &str = " reboot=k";

/// Writes an L to the lamp of the example `rust_vmm`, and reads it.
pub const LAMP: &str = "printf L | dd of=/dev/port bs=1 seek=1808 conv=notrunc 2>/dev/null
    dd if=/dev/port bs=1 skip=1808 count=1 2>/dev/null";

/// How many children a fork has.
pub const FORKS: usize = 16;

/// Makes the kernel print from the start, so that a test need not wait for the boot.
pub const EARLY: &str = "earlyprintk=ttyS0 console=ttyS0 loglevel=7";
/// What it prints first.
pub const FIRST_WORDS: &str = "Hypervisor detected: KVM";

/// What Linux says where the serial port that its command line names is not there.
pub const NO_SERIAL_PORT: [&str; 0] = [];

/// What the driver of the clock is called.
pub const RTC: &str = "rtc_cmos";

/// The console's serial port.
pub type Console = Serial;

pub fn serial(line: Backend) -> Console {
    Serial::new("com1", SerialPort::COM1, line)
}

/// A clock and power.
pub fn board() -> Vec<Box<dyn Device>> {
    vec![Box::new(Rtc::new("rtc")), Box::new(AcpiPower::new("power"))]
}
