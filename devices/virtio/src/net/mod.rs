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

mod header;
mod io;
mod mac;
mod rx;
mod tap;
mod tx;
mod worker;

use std::sync::Arc;

use ossature_bus::{MetricVisitor, State, Syscall};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF,
};

use crate::counter::{Counter, HostErrors};
use crate::{DeviceType, Start, StartError, VirtioDevice, Worker};
pub use header::HEADER_LEN;
pub use io::{NetIo, Offloads};
pub use mac::{Mac, MacError};
pub use tap::{Tap, TapError};

/// The queue of buffers for packets to the guest.
const RX: u16 = 0;
/// The queue of packets from the guest.
const TX: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// The longest packet with its header: 64 KiB of segmentation offload behind Ethernet and VLAN headers.
const MAX_PACKET: u64 = HEADER_LEN as u64 + 18 + 65536;

/// What the device has done since it was made.
#[derive(Debug, Default)]
struct Counters {
    rx_packets: Counter,
    rx_bytes: Counter,
    rx_dropped: Counter,
    tx_packets: Counter,
    tx_bytes: Counter,
    tx_dropped: Counter,
    host_errors: HostErrors,
}

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

impl<I: NetIo> VirtioDevice for Net<I> {
    fn device_type(&self) -> DeviceType {
        DeviceType::NET
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_CSUM
            | 1 << VIRTIO_NET_F_HOST_TSO4
            | 1 << VIRTIO_NET_F_HOST_TSO6
            | 1 << VIRTIO_NET_F_HOST_ECN
            | 1 << VIRTIO_NET_F_GUEST_CSUM
            | 1 << VIRTIO_NET_F_GUEST_TSO4
            | 1 << VIRTIO_NET_F_GUEST_TSO6
            | 1 << VIRTIO_NET_F_GUEST_ECN
    }

    fn queues(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![RX, TX]]
    }

    fn config_len(&self) -> u32 {
        // The fields after the address belong to features that are not offered.
        6
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&self.mac.bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Since virtio 1.0 the address is not written here.
    }

    fn start(&mut self, _group: usize, start: Start) -> Result<Box<dyn Worker>, StartError> {
        self.io.set_offloads(Offloads::negotiated(start.features)).map_err(|source| StartError {
            reason: "cannot set the offloads of the host's interface".to_owned(),
            source: Some(source),
        })?;
        Ok(worker::start(self, start))
    }

    fn reset(&mut self) {
        // The next start sets the offloads anew; nearly all else went with the worker.
        self.counters.host_errors.reset();
    }

    fn state(&self) -> State {
        State::Stateless
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.io.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let Counters { rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped, host_errors } =
            &*self.counters;
        visitor.counter("rx_packets", rx_packets.get());
        visitor.counter("rx_bytes", rx_bytes.get());
        visitor.counter("rx_dropped_packets", rx_dropped.get());
        visitor.counter("tx_packets", tx_packets.get());
        visitor.counter("tx_bytes", tx_bytes.get());
        visitor.counter("tx_dropped_packets", tx_dropped.get());
        visitor.counter("host_errors", host_errors.get());
    }
}

#[cfg(test)]
mod tests;
