//! What a block device has done since it was made.

use std::sync::Arc;

use ossature_bus::MetricVisitor;

use crate::counter::{Counter, HostErrors};

/// Of one queue.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) reads: Counter,
    pub(super) read_bytes: Counter,
    pub(super) writes: Counter,
    pub(super) written_bytes: Counter,
    pub(super) flushes: Counter,
    pub(super) discards: Counter,
    pub(super) write_zeroes: Counter,
    pub(super) refused: Counter,
    pub(super) throttled: Counter,
}

/// Shows the sums of all queues.
pub(super) fn show(queues: &[Arc<Counters>], host_errors: &HostErrors, visitor: &mut dyn MetricVisitor) {
    let mut sum = |name, help, counter: fn(&Counters) -> &Counter| {
        let sum = queues.iter().map(|queue| counter(queue).get()).fold(0, u64::wrapping_add);
        visitor.counter(name, help, sum);
    };
    sum("read_requests", "Reads that were completed.", |c| &c.reads);
    sum("read_bytes", "Bytes that the guest has read.", |c| &c.read_bytes);
    sum("write_requests", "Writes that were completed.", |c| &c.writes);
    sum("written_bytes", "Bytes that the guest has written.", |c| &c.written_bytes);
    sum("flush_requests", "Flushes that were completed.", |c| &c.flushes);
    sum("discard_requests", "Discards that were completed.", |c| &c.discards);
    sum("write_zeroes_requests", "Requests to write zeros that were completed.", |c| &c.write_zeroes);
    sum("refused_requests", "Requests that the device does not support or allow.", |c| &c.refused);
    sum("throttled_requests", "Times that a request has waited for a limit.", |c| &c.throttled);
    visitor.counter("host_errors", "Failures of the host that the device met.", host_errors.get());
}
