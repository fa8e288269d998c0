//! What a console has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_bytes: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_dropped_bytes: Counter,
    pub(super) host_errors: HostErrors,
}

impl Counters {
    pub(super) fn show(&self, visitor: &mut dyn MetricVisitor) {
        let Self { rx_bytes, tx_bytes, tx_dropped_bytes, host_errors } = self;
        visitor.counter("rx_bytes", "Bytes that the guest was given.", rx_bytes.get());
        visitor.counter("tx_bytes", "Bytes from the guest that the host took.", tx_bytes.get());
        visitor.counter(
            "tx_dropped_bytes",
            "Bytes from the guest that the host did not take.",
            tx_dropped_bytes.get(),
        );
        visitor.counter("host_errors", "Failures of the host that the device met.", host_errors.get());
    }
}
