//! What a network card has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_packets: Counter,
    pub(super) rx_bytes: Counter,
    pub(super) rx_dropped: Counter,
    pub(super) tx_packets: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_dropped: Counter,
    pub(super) host_errors: HostErrors,
}

impl Counters {
    pub(super) fn show(&self, visitor: &mut dyn MetricVisitor) {
        let Self { rx_packets, rx_bytes, rx_dropped, tx_packets, tx_bytes, tx_dropped, host_errors } = self;
        visitor.counter("rx_packets", "Packets that the guest was given.", rx_packets.get());
        visitor.counter("rx_bytes", "Bytes in packets that the guest was given.", rx_bytes.get());
        visitor.counter("rx_dropped_packets", "Packets for the guest that were dropped.", rx_dropped.get());
        visitor.counter("tx_packets", "Packets from the guest that were sent.", tx_packets.get());
        visitor.counter("tx_bytes", "Bytes in packets from the guest that were sent.", tx_bytes.get());
        visitor.counter("tx_dropped_packets", "Packets from the guest that were dropped.", tx_dropped.get());
        visitor.counter("host_errors", "Failures of the host that the device met.", host_errors.get());
    }
}
