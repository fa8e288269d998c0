//! Feature negotiation (virtio 1.2, 2.2).

use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The device complies with version 1 of the specification: without it there is no negotiation.
pub(crate) const VERSION_1: u64 = 1 << VIRTIO_F_VERSION_1;
/// Event indices in the rings.
pub(crate) const EVENT_IDX: u64 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Indirect descriptor tables.
pub(crate) const INDIRECT: u64 = 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// What the device offers and what the driver has written so far, 32 bits at a time.
#[derive(Debug)]
pub(crate) struct Features {
    offered: u64,
    offered_select: u32,
    accepted: u64,
    accepted_select: u32,
    /// The driver has accepted a bit above 63, where nothing is offered.
    beyond: bool,
}

impl Features {
    pub(super) fn new(device: u64) -> Self {
        let offered = device | VERSION_1 | EVENT_IDX | INDIRECT;
        Self { offered, offered_select: 0, accepted: 0, accepted_select: 0, beyond: false }
    }

    /// The window of offered bits that the driver has selected.
    pub(crate) fn window(&self) -> u32 {
        match self.offered_select {
            0 => self.offered as u32,
            1 => (self.offered >> 32) as u32,
            _ => 0,
        }
    }

    pub(super) fn select_offered(&mut self, select: u32) {
        self.offered_select = select;
    }

    pub(super) fn select_accepted(&mut self, select: u32) {
        self.accepted_select = select;
    }

    pub(super) fn accept(&mut self, bits: u32) {
        match self.accepted_select {
            0 => self.accepted = self.accepted & !0xffff_ffff | u64::from(bits),
            1 => self.accepted = self.accepted & 0xffff_ffff | u64::from(bits) << 32,
            _ => self.beyond |= bits != 0,
        }
    }

    /// What was negotiated, if the device can work with it.
    pub(super) fn negotiated(&self) -> Option<u64> {
        let unoffered = self.beyond || self.accepted & !self.offered != 0;
        (!unoffered && self.accepted & VERSION_1 != 0).then_some(self.accepted)
    }

    pub(super) fn reset(&mut self) {
        let Self { offered: _, offered_select, accepted, accepted_select, beyond } = self;
        (*offered_select, *accepted, *accepted_select, *beyond) = (0, 0, 0, false);
    }
}
