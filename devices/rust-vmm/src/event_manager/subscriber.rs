//! Our loop as a subscriber of theirs.

use std::fmt;

use ossature_bus::EventLoop;

use super::{Error, EventOps, EventSet, Events, MutEventSubscriber};

/// An [`EventLoop`] as a subscriber of an [`EventManager`](super::EventManager), whose thread takes the turns of all that
/// is hosted on the loop. Only while that thread does something else may one that waits for a virtio worker take the
/// worker's turns: so another subscriber may stop a machine, or wait for a vCPU that stops a queue. Inside of a turn of the
/// loop that must not be done.
///
/// The loop's descriptor is watched, level-triggered, and each event is a [pass](EventLoop::pass), after which the loop
/// counts as asleep: whoever makes a turn due from then on makes the descriptor readable.
pub struct LoopSubscriber {
    event_loop: EventLoop,
    on_error: Box<dyn FnMut(Error) + Send>,
}

impl LoopSubscriber {
    /// Watches `event_loop` from when it is added to a manager. event-manager has no way for a subscriber to fail:
    /// `on_error` is told if the loop cannot be watched or passed, and then it gets no turns.
    pub fn new(event_loop: &EventLoop, on_error: impl FnMut(Error) + Send + 'static) -> Self {
        Self { event_loop: event_loop.clone(), on_error: Box::new(on_error) }
    }

    fn events(&self) -> Events {
        Events::new(&self.event_loop, EventSet::IN)
    }
}

impl MutEventSubscriber for LoopSubscriber {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        if let Err(error) = ops.add(self.events()) {
            (self.on_error)(error);
        }
    }

    fn process(&mut self, _: Events, ops: &mut EventOps<'_>) {
        if let Err(error) = self.event_loop.pass() {
            // It would be called for ever.
            let _ = ops.remove(self.events());
            (self.on_error)(Error::Epoll(error.into()));
        }
    }
}

impl fmt::Debug for LoopSubscriber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoopSubscriber").field("event_loop", &self.event_loop).finish_non_exhaustive()
    }
}
