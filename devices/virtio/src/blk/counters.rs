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
        visitor.counter("read_requests", reads.get());
        visitor.counter("read_bytes", read_bytes.get());
        visitor.counter("write_requests", writes.get());
        visitor.counter("written_bytes", written_bytes.get());
        visitor.counter("flush_requests", flushes.get());
        visitor.counter("refused_requests", refused.get());
        visitor.counter("host_errors", host_errors.get());
    }
}
