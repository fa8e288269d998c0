//! The feature bits that belong to rings and transports (virtio 1.2, section 6), not to a kind of device.

use virtio_bindings::bindings::virtio_config::{VIRTIO_F_RING_RESET, VIRTIO_F_VERSION_1};
use virtio_bindings::bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// The device complies with version 1 of the specification: without it there is no negotiation.
pub const VERSION_1: u128 = 1 << VIRTIO_F_VERSION_1;
/// Event indices in the rings.
pub const EVENT_IDX: u128 = 1 << VIRTIO_RING_F_EVENT_IDX;
/// Indirect descriptor tables.
pub const INDIRECT_DESC: u128 = 1 << VIRTIO_RING_F_INDIRECT_DESC;
/// Queues can be reset one by one.
pub const RING_RESET: u128 = 1 << VIRTIO_F_RING_RESET;
