//! What a bus refuses.

use ossature_bus::DeviceError;

/// Why a function cannot join a bus, or not be taken off it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PciError {
    /// The slot does not exist, or is the host bridge's.
    #[error("slot {slot}: functions have the slots 1 to 31")]
    NoSuchSlot {
        /// The slot.
        slot: u8,
    },
    /// Another function has the slot.
    #[error("slot {slot} is taken by {id}")]
    Taken {
        /// The slot.
        slot: u8,
        /// The other function's device.
        id: String,
    },
    /// The guest has not let go yet of the function that was there before.
    #[error("slot {slot}: the guest has not ejected yet what was removed from it")]
    NotEjected {
        /// The slot.
        slot: u8,
    },
    /// All slots are taken.
    #[error("no slot is free: a bus has 31 functions at most")]
    Full,
    /// No function of this device is on the bus.
    #[error("no function of a device {id} is on the bus")]
    NoSuchFunction {
        /// The device.
        id: String,
    },
    /// No guest runs that could be asked.
    #[error("the machine has not started: a device can be removed without asking the guest")]
    NotStarted,
    /// The bus has a host already.
    #[error("the bus has a host bridge already")]
    Attached,
}

impl From<PciError> for DeviceError {
    fn from(error: PciError) -> Self {
        Self::new(error.to_string()).with_source(error)
    }
}
