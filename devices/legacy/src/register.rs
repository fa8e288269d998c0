//! What all these devices have in common: byte-wide registers behind I/O ports and ISA interrupts.

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, AddressSpace, BusFault, InterruptRequest, Placement, RangeRequest, Size, Trigger,
};

/// Which of `count` byte-wide registers `at` means.
pub(crate) fn byte(at: Access, count: u8) -> Result<u8, BusFault> {
    if at.size != Size::B1 {
        return Err(BusFault::Width);
    }
    u8::try_from(at.offset).ok().filter(|offset| *offset < count).ok_or(BusFault::Unmapped)
}

/// `size` I/O ports from `base`.
pub(crate) fn ports(base: u16, size: u64) -> RangeRequest {
    RangeRequest { space: AddressSpace::Pio, size, align: 1, placement: Placement::Fixed(base.into()) }
}

/// An edge-triggered interrupt line.
pub(crate) fn interrupt(placement: Placement) -> InterruptRequest {
    InterruptRequest { placement, trigger: Trigger::Edge }
}

/// What a device without state answers to a saved one.
pub(crate) const STATELESS: StateError = StateError::Unsupported { reason: "there is nothing to restore" };
