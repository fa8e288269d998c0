//! What a block device has done since it was made.

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) writes: Counter,
    pub(super) written_bytes: Counter,
    pub(super) flushes: Counter,
    pub(super) refused: Counter,
    pub(super) host_errors: HostErrors,
}

impl Counters {
    pub(super) fn show(&self, visitor: &mut dyn MetricVisitor) {
        let Self { reads, read_bytes, writes, written_bytes, flushes, refused, host_errors } = self;
        visitor.counter("read_requests", "Reads that were completed.", reads.get());
        visitor.counter("read_bytes", "Bytes that the guest has read.", read_bytes.get());
        visitor.counter("write_requests", "Writes that were completed.", writes.get());
        visitor.counter("written_bytes", "Bytes that the guest has written.", written_bytes.get());
        visitor.counter("flush_requests", "Flushes that were completed.", flushes.get());
        visitor.counter(
            "refused_requests",
            "Requests that the device does not support or allow.",
            refused.get(),
        );
        visitor.counter("host_errors", "Failures of the host that the device met.", host_errors.get());
    }
}
