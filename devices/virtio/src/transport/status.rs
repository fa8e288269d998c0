//! The device status machine (virtio 1.2, 2.1 and 3.1.1).

use virtio_bindings::bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK, VIRTIO_CONFIG_S_FAILED,
    VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_CONFIG_S_NEEDS_RESET,
};

pub(crate) const ACKNOWLEDGE: u8 = VIRTIO_CONFIG_S_ACKNOWLEDGE as u8;
pub(crate) const DRIVER: u8 = VIRTIO_CONFIG_S_DRIVER as u8;
pub(crate) const FEATURES_OK: u8 = VIRTIO_CONFIG_S_FEATURES_OK as u8;
pub(crate) const DRIVER_OK: u8 = VIRTIO_CONFIG_S_DRIVER_OK as u8;
pub(crate) const NEEDS_RESET: u8 = VIRTIO_CONFIG_S_NEEDS_RESET as u8;
pub(crate) const FAILED: u8 = VIRTIO_CONFIG_S_FAILED as u8;

/// The steps of initialization, each from the status that the ones before leave.
pub(super) const STEPS: [u8; 4] = [ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK];

/// The status in which features are negotiated.
pub(super) const NEGOTIATING: u8 = ACKNOWLEDGE | DRIVER;

/// What a write to the status register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Nothing new.
    Nothing,
    /// What no driver may.
    Refused,
    /// 0: back to the start.
    Reset,
    /// The steps to this status, one by one, with FAILED as the last where it is in there.
    Advance(u8),
}

/// Returns true if `status` is one that the steps lead to, whatever the device itself has added.
pub(super) fn is_reachable(status: u8) -> bool {
    let steps = status & !(NEEDS_RESET | FAILED);
    let mut reached = 0;
    steps == 0
        || STEPS.iter().any(|bit| {
            reached |= bit;
            steps == reached
        })
}

/// What writing `written` means in status `current`. NEEDS_RESET is the device's own: a driver that ORs its bits into
/// what it has read writes it back, and changes nothing by it. Several steps at once are as good as one by one.
pub(super) fn request(current: u8, written: u8) -> Request {
    let (from, to) = (current & !NEEDS_RESET, written & !NEEDS_RESET);
    if written == 0 {
        Request::Reset
    } else if to == from {
        Request::Nothing
    } else if from & FAILED != 0 || from & !to != 0 || !is_reachable(to) {
        // A driver that gave up can only reset (2.1.1), and no bit is cleared by anything else.
        Request::Refused
    } else {
        Request::Advance(to)
    }
}
