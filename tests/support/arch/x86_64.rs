//! What a machine of the tests has on x86_64.

use ossature::bus::Device;
use ossature::legacy::{AcpiPower, Backend, Rtc, Serial, SerialPort};

/// The console's serial port.
pub fn serial(line: Backend) -> Serial {
    Serial::new("com1", SerialPort::COM1, line)
}

/// A clock and power.
pub fn board() -> Vec<Box<dyn Device>> {
    vec![Box::new(Rtc::new("rtc")), Box::new(AcpiPower::new("power"))]
}
