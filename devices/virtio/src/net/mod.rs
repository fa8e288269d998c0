//! Network card (virtio 1.2, section 5.1).
//!
//! ```
//! use ossature_virtio::net::{Mac, Net, Tap};
//!
//! fn card(tap: &str, mac: Option<&str>) -> Result<Net<Tap>, Box<dyn std::error::Error>> {
//!     let mac = match mac {
//!         Some(text) => text.parse()?,
//!         None => Mac::derived(tap),
//!     };
//!     Ok(Net::new(Tap::open(tap)?, mac))
//! }
//!
//! let error = card("no-such-tap", None).unwrap_err();
//! assert!(error.to_string().starts_with(r#"tap "no-such-tap" does not exist"#));
//! ```

mod counters;
mod header;
mod io;
mod mac;
mod rx;
mod shared;
mod tap;
mod tx;
mod worker;

use std::sync::Arc;

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
};

use self::counters::Counters;
use self::worker::NetWorker;
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use header::HEADER_LEN;
pub use io::{NetIo, Offloads};
pub use mac::{Mac, MacError};
pub use tap::{Tap, TapError};

/// The queue of buffers for packets to the guest.
const RX: u16 = 0;
/// The queue of packets from the guest.
const TX: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

/// The form in which a card is saved.
const KIND: &str = "ossature.virtio-net";
const VERSION: u16 = 1;
const MAC: Field = Field::new(1, "address of the card");

/// A network card on a [`NetIo`], with one pair of queues.
///
/// It offers checksum and TCP segmentation offloads both ways, merged receive buffers and a MAC address. Packets
/// move between the host's kernel and the guest's buffers without a copy of ours. A packet to the guest for
/// which the driver has too few buffers, and a packet from the guest that is too short, too long, or asks for
/// what was not negotiated, is dropped and counted.
#[derive(Debug)]
pub struct Net<I> {
    io: Arc<I>,
    mac: Mac,
    counters: Arc<Counters>,
}

impl<I: NetIo> Net<I> {
    /// A card on `io` with the address `mac`.
    pub fn new(io: I, mac: Mac) -> Self {
        Self { io: Arc::new(io), mac, counters: Arc::default() }
    }

    /// Its address.
    pub fn mac(&self) -> Mac {
        self.mac
    }
}

impl<I: NetIo> LocalDevice for Net<I> {
    fn info(&self) -> DeviceInfo {
        let features = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN;
        // The fields after the address belong to features that are not offered.
        let config_len = 6;
        DeviceInfo::new(DeviceType::NET, &QUEUE_SIZES).with_features(features).with_config(config_len)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![RX, TX]]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&self.mac.bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Since virtio 1.0 the address is not written here.
    }

    fn worker(&mut self, _group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        self.io.set_offloads(Offloads::negotiated(activation.features)).map_err(|e| {
            DeviceError::new("cannot set the offloads of the host's interface").with_source(e)
        })?;
        let (io, counters) = (Arc::clone(&self.io), Arc::clone(&self.counters));
        Ok(Box::new(NetWorker::new(io, counters, activation)))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        // The next worker sets the offloads anew; nearly all else went with the last.
        self.counters.host_errors.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.bytes(MAC, &self.mac.bytes());
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let mac: [u8; 6] = fields.array(MAC)?;
        fields.finish()?;
        if mac != self.mac.bytes() {
            // The guest would go on with its own.
            let reason = "this card has another";
            return Err(StateError::Inconsistent { field: "address of the card", reason });
        }
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.io.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.counters.show(visitor);
    }
}

#[cfg(test)]
mod tests;
