//! What a machine of the tests has on aarch64.

use ossature::bus::Device;
use ossature::legacy::{Backend, Serial};

/// The console's serial port.
pub fn serial(line: Backend) -> Serial {
    Serial::pl011("com1", line)
}

/// Nothing more: power is the firmware's.
pub fn board() -> Vec<Box<dyn Device>> {
    Vec::new()
}
