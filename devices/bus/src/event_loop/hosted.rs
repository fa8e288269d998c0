//! The owner's side of a handler on a loop.

use std::sync::Arc;

use super::cell::Cell;
use super::handle::LoopHandle;
use super::handler::Handler;

/// A handler on its loop; dropping this takes the handler back and drops it.
pub struct Hosted<H: Handler> {
    cell: Arc<Cell<H>>,
    handle: LoopHandle,
}

impl<H: Handler> Hosted<H> {
    pub(super) fn new(cell: Arc<Cell<H>>, handle: LoopHandle) -> Self {
        Self { cell, handle }
    }

    /// Takes the handler back. Waits for its turn that is under way; it has no other. `None` if it has panicked, and
    /// then it is dropped by now.
    ///
    /// Inside of one of its own turns the handler cannot be had: the answer is `None`, and it is dropped when the
    /// turn is over.
    pub fn take_back(self) -> Option<H> {
        self.take()
    }

    fn take(&self) -> Option<H> {
        self.handle.remove();
        if self.handle.is_in_turn() {
            self.cell.give_up();
            return None;
        }
        self.cell.take()
    }

    /// How the handler is reached from elsewhere.
    pub fn handle(&self) -> &LoopHandle {
        &self.handle
    }
}

impl<H: Handler> Drop for Hosted<H> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<H: Handler> std::fmt::Debug for Hosted<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hosted({:?})", self.handle)
    }
}
