//! The parts that these devices have in common: byte-wide registers, and their names.

use ossature_bus::state::StateError;
use ossature_bus::{Access, BusFault, Size};

/// The name of a device's registers, if it has one range of them.
pub(crate) const REGISTERS: &str = "registers";

/// The name of a device's interrupt.
pub(crate) const IRQ: &str = "irq";

/// The number of the register that `at` means, of `count` that are a byte wide.
pub(crate) fn byte(at: Access, count: u8) -> Result<u8, BusFault> {
    if at.size != Size::B1 {
        return Err(BusFault::Width);
    }
    u8::try_from(at.offset).ok().filter(|offset| *offset < count).ok_or(BusFault::Unmapped)
}

/// The answer of a device without state to a saved one.
pub(crate) const STATELESS: StateError = StateError::Unsupported { reason: "there is nothing to restore" };
