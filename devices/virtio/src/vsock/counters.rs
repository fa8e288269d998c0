//! What a socket device has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_packets: Counter,
    pub(super) rx_bytes: Counter,
    pub(super) tx_packets: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) dropped: Counter,
    pub(super) opened: Counter,
    pub(super) refused: Counter,
    pub(super) resets: Counter,
    pub(super) host_errors: HostErrors,
}

impl Counters {
    pub(super) fn show(&self, visitor: &mut dyn MetricVisitor) {
        let Self {
            rx_packets,
            rx_bytes,
            tx_packets,
            tx_bytes,
            dropped,
            opened,
            refused,
            resets,
            host_errors,
        } = self;
        visitor.counter("rx_packets", "Packets that the guest was given.", rx_packets.get());
        visitor.counter("rx_bytes", "Bytes of data that the guest was given.", rx_bytes.get());
        visitor.counter("tx_packets", "Packets from the guest.", tx_packets.get());
        visitor.counter("tx_bytes", "Bytes of data from the guest.", tx_bytes.get());
        visitor.counter(
            "dropped_packets",
            "Packets and buffers of the guest's that make no sense.",
            dropped.get(),
        );
        visitor.counter("connections", "Connections that were opened.", opened.get());
        visitor.counter("refused_connections", "Connections that were refused.", refused.get());
        visitor.counter("resets", "Connections that the device has reset.", resets.get());
        visitor.counter("host_errors", "Failures of the host that the device met.", host_errors.get());
    }
}
