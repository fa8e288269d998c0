//! How a handler on a loop is reached from elsewhere.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::core::Core;
use super::handler::{Source, WatchError};

/// Reaches a handler on its loop from any thread, also from inside its turns. Does nothing once the handler is off
/// the loop.
#[derive(Clone)]
pub struct LoopHandle {
    core: Arc<Core>,
    id: u64,
}

impl LoopHandle {
    pub(super) fn new(core: Arc<Core>, id: u64) -> Self {
        Self { core, id }
    }

    /// Gives the handler a turn.
    pub fn wake(&self, token: u16) {
        let mut table = self.core.table();
        if table.slot(self.id).is_some() {
            table.is_due(self.id, token);
            self.core.changed(table);
        }
    }

    /// Watches one more descriptor, or one that is watched already for something else. It wakes also for what has
    /// happened before.
    pub fn watch(&self, source: Source) -> Result<(), WatchError> {
        self.core.watch(&mut self.core.table(), self.id, source)
    }

    /// Stops watching a descriptor. Needed before it is closed.
    pub fn forget(&self, fd: RawFd) {
        let mut table = self.core.table();
        if let Some(slot) = table.slot(self.id) {
            slot.fds.retain(|other| *other != fd);
            self.core.poller.forget(fd);
        }
    }

    /// Takes the handler off the loop.
    pub(super) fn remove(&self) {
        self.core.remove(self.id);
    }

    /// Returns true if called by a turn of the handler.
    pub(super) fn is_in_turn(&self) -> bool {
        self.core.is_turn_of(self.id)
    }
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoopHandle({})", self.id)
    }
}
