//! What both queues of a card work with.

use std::sync::Arc;

use ossature_bus::EventSink;

use super::counters::Counters;

pub(super) struct Shared<I> {
    pub(super) io: Arc<I>,
    pub(super) counters: Arc<Counters>,
    pub(super) events: EventSink,
}
