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

/// What a write to the status register asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing, or what no driver may: the status stays.
    Ignore,
    /// 0: back to the start.
    Reset,
    /// Note the new status.
    Note,
    /// Note it if the features fit.
    CheckFeatures,
    /// Start the queues, then note it.
    Start,
}

/// The steps of initialization, each from exactly the status that the one before leaves.
const STEPS: [(u8, u8, Step); 4] = [
    (0, ACKNOWLEDGE, Step::Note),
    (ACKNOWLEDGE, DRIVER, Step::Note),
    (ACKNOWLEDGE | DRIVER, FEATURES_OK, Step::CheckFeatures),
    (ACKNOWLEDGE | DRIVER | FEATURES_OK, DRIVER_OK, Step::Start),
];

/// The status in which features are negotiated.
pub(super) const NEGOTIATING: u8 = ACKNOWLEDGE | DRIVER;
/// The status in which queues are set up.
pub(super) const SETTING_UP: u8 = ACKNOWLEDGE | DRIVER | FEATURES_OK;

/// What writing `written` means in status `current`. NEEDS_RESET is the device's own: a driver that ORs its
/// bits into what it has read writes it back, and changes nothing by it.
pub(super) fn step(current: u8, written: u8) -> Step {
    let (from, to) = (current & !NEEDS_RESET, written & !NEEDS_RESET);
    if written == 0 {
        Step::Reset
    } else if from & FAILED != 0 {
        // The driver gave up: nothing but a reset leads on (2.1.1).
        Step::Ignore
    } else if to == from | FAILED {
        Step::Note
    } else {
        let legal = STEPS.iter().find(|(at, bit, _)| *at == from && at | bit == to);
        legal.map_or(Step::Ignore, |(_, _, step)| *step)
    }
}
