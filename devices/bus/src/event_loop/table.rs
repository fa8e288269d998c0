//! The handlers on the loop and the turns that are due: plain data, behind one lock.

use std::os::fd::RawFd;
use std::sync::Arc;

use super::cell::TakeTurn;
use crate::sync::ThreadId;

/// The number that no handler has.
pub(super) const NOBODY: u64 = 0;

pub(super) struct Table {
    /// In the order of their ids.
    slots: Vec<Slot>,
    last: u64,
    /// Turns that are due without an event.
    pub(super) due: Vec<(u64, u16)>,
    /// Nobody looks at the table before the loop's wake-up event is signalled.
    pub(super) asleep: bool,
    /// Nobody has run or watched the loop yet: who does so first looks at the table.
    pub(super) fresh: bool,
    /// A run is to end.
    pub(super) stop: bool,
    /// The thread that is in a pass.
    pub(super) runner: Option<ThreadId>,
}

pub(super) struct Slot {
    id: u64,
    pub(super) handler: Arc<dyn TakeTurn>,
    pub(super) fds: Vec<RawFd>,
}

impl Table {
    pub(super) fn new() -> Self {
        let (asleep, fresh, stop) = (false, true, false);
        Self { slots: Vec::new(), last: NOBODY, due: Vec::new(), asleep, fresh, stop, runner: None }
    }

    pub(super) fn insert(&mut self, handler: Arc<dyn TakeTurn>) -> u64 {
        self.last += 1;
        self.slots.push(Slot { id: self.last, handler, fds: Vec::new() });
        self.last
    }

    fn position(&self, id: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    pub(super) fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.position(id).and_then(|at| self.slots.get_mut(at))
    }

    pub(super) fn remove(&mut self, id: u64) -> Option<Slot> {
        let slot = self.slots.remove(self.position(id)?);
        self.due.retain(|(other, _)| *other != id);
        Some(slot)
    }

    /// Notes a turn that is due, once.
    pub(super) fn is_due(&mut self, id: u64, token: u16) {
        if !self.due.contains(&(id, token)) {
            self.due.push((id, token));
        }
    }
}
