//! What a console has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) rx_bytes: Counter,
    pub(super) tx_bytes: Counter,
    pub(super) tx_dropped_bytes: Counter,
    pub(super) tx_stalls: Counter,
    pub(super) control_ignored: Counter,
    pub(super) host_errors: HostErrors,
}

impl Counters {
    pub(super) fn show(&self, visitor: &mut dyn MetricVisitor) {
        let Self { rx_bytes, tx_bytes, tx_dropped_bytes, tx_stalls, control_ignored, host_errors } = self;
        visitor.counter("rx_bytes", rx_bytes.get());
        visitor.counter("tx_bytes", tx_bytes.get());
        visitor.counter("tx_dropped_bytes", tx_dropped_bytes.get());
        visitor.counter("tx_stalls", tx_stalls.get());
        visitor.counter("control_ignored", control_ignored.get());
        visitor.counter("host_errors", host_errors.get());
    }
}
