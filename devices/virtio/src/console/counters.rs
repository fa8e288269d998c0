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
        visitor.counter("rx_bytes", rx_bytes.get());
        visitor.counter("tx_bytes", tx_bytes.get());
        visitor.counter("tx_dropped_bytes", tx_dropped_bytes.get());
        visitor.counter("host_errors", host_errors.get());
    }
}
