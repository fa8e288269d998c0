//! What a machine of the tests has on aarch64.

use ossature::bus::Device;
use ossature::legacy::{Backend, Pl011, Serial};

/// What the guest calls the root bus and its configuration space in `/proc/iomem`.
pub const PCI: [&str; 2] = ["pcie@", "PCI ECAM"];

/// The console's serial port.
pub type Console = Serial<Pl011>;

pub fn serial(line: Backend) -> Console {
    Serial::pl011("com1", line)
}

/// Nothing more: power is the firmware's.
pub fn board() -> Vec<Box<dyn Device>> {
    Vec::new()
}
