//! What a console has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_bytes: Counter,
    pub(super) rx_dropped_bytes: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_dropped_bytes: Counter,
    pub(super) tx_stalls: Counter,
    pub(super) control_ignored: Counter,
    pub(super) clients: Counter,
    pub(super) host_errors: HostErrors,
}

impl Counters {
    pub(super) fn show(&self, visitor: &mut dyn MetricVisitor) {
        let Self {
            rx_bytes,
            rx_dropped_bytes,
            tx_bytes,
            tx_dropped_bytes,
            tx_stalls,
            control_ignored,
            clients,
            host_errors,
        } = self;
        visitor.counter("rx_bytes", "Bytes that the guest was given.", rx_bytes.get());
        visitor.counter(
            "rx_dropped_bytes",
            "Bytes of clients that were gone when the next one came, and that the guest had not taken.",
            rx_dropped_bytes.get(),
        );
        visitor.counter("tx_bytes", "Bytes from the guest that the host took.", tx_bytes.get());
        visitor.counter(
            "tx_dropped_bytes",
            "Bytes from the guest that the host did not take.",
            tx_dropped_bytes.get(),
        );
        visitor.counter("tx_stalls", "Times that output began to wait for the host.", tx_stalls.get());
        visitor.counter(
            "control_ignored",
            "Control messages of the guest that mean nothing.",
            control_ignored.get(),
        );
        visitor.counter("clients", "Clients that have connected to sockets of ports.", clients.get());
        visitor.counter("host_errors", "Failures of the host that the device met.", host_errors.get());
    }
}
