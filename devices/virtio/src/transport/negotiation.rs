//! Feature negotiation (virtio 1.2, 2.2).

use crate::features::{EVENT_IDX, INDIRECT_DESC, RING_RESET, VERSION_1};

/// Bits in one window of the feature registers.
const WINDOW: u32 = u32::BITS;

/// What the device offers and what the driver has written so far, 32 bits at a time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Features {
    pub(super) offered: u128,
    pub(super) offered_select: u32,
    pub(super) accepted: u128,
    pub(super) accepted_select: u32,
    /// The driver has accepted a bit above 127, where nothing is offered.
    pub(super) beyond: bool,
}

impl Features {
    pub(super) fn new(device: u128) -> Self {
        let offered = device | VERSION_1 | EVENT_IDX | INDIRECT_DESC | RING_RESET;
        Self { offered, offered_select: 0, accepted: 0, accepted_select: 0, beyond: false }
    }

    /// The window of offered bits that the driver has selected.
    pub(crate) fn window(&self) -> u32 {
        shift(self.offered_select).map_or(0, |shift| (self.offered >> shift) as u32)
    }

    /// The window of accepted bits that the driver has selected.
    pub(super) fn accepted_window(&self) -> u32 {
        shift(self.accepted_select).map_or(0, |shift| (self.accepted >> shift) as u32)
    }

    pub(super) fn accept(&mut self, bits: u32) {
        match shift(self.accepted_select) {
            Some(shift) => {
                let others = self.accepted & !(u128::from(u32::MAX) << shift);
                self.accepted = others | u128::from(bits) << shift;
            }
            None => self.beyond |= bits != 0,
        }
    }

    /// What was negotiated, if the device can work with it.
    pub(super) fn negotiated(&self) -> Option<u128> {
        let unoffered = self.beyond || self.accepted & !self.offered != 0;
        (!unoffered && self.accepted & VERSION_1 != 0).then_some(self.accepted)
    }

    pub(super) fn reset(&mut self) {
        let Self { offered: _, offered_select, accepted, accepted_select, beyond } = self;
        (*offered_select, *accepted, *accepted_select, *beyond) = (0, 0, 0, false);
    }
}

/// How far the window `select` lies from bit 0; `None` where no feature is.
fn shift(select: u32) -> Option<u32> {
    select.checked_mul(WINDOW).filter(|shift| *shift < u128::BITS)
}
