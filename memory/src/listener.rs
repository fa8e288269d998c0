//! Listeners that follow which memory slots a guest has: the hypervisor, vhost peers.

use std::error::Error;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::RamSlot;
use crate::error::RamError;

/// Follows the slots of a [`Ram`](crate::Ram). See [`Ram::listen`](crate::Ram::listen).
///
/// Calls come one at a time, in the order of the changes, on the thread that makes the change. They must not change or
/// listen to the same RAM, nor drop a [`ListenerGuard`] of it: that would wait for itself for ever.
pub trait MemoryListener: Debug + Send + Sync {
    /// There is a new slot, which devices do not reach yet. If a listener refuses it, it is not added, and the
    /// listeners that accepted it are told that it is removed.
    fn slot_added(&self, slot: &RamSlot) -> Result<(), Box<dyn Error + Send + Sync>>;

    /// A slot was removed: views of RAM that are made or refreshed from now on do not reach it. Keep the slot to keep
    /// its memory mapped, if something cannot let go of it.
    fn slot_removed(&self, slot: &RamSlot);
}

/// The listeners, in the order in which they began to listen.
#[derive(Debug, Default)]
pub(crate) struct Listeners {
    list: Vec<(u64, Arc<dyn MemoryListener>)>,
    next: u64,
}

impl Listeners {
    /// Tells all listeners of a new slot, or none.
    pub(crate) fn added(&self, slot: &RamSlot) -> Result<(), RamError> {
        for (index, (_, listener)) in self.list.iter().enumerate() {
            if let Err(source) = listener.slot_added(slot) {
                self.list.iter().take(index).rev().for_each(|(_, told)| told.slot_removed(slot));
                return Err(refused(slot, source));
            }
        }
        Ok(())
    }

    /// Tells all listeners that a slot is removed, in reverse order.
    pub(crate) fn removed(&self, slot: &RamSlot) {
        self.list.iter().rev().for_each(|(_, listener)| listener.slot_removed(slot));
    }

    /// Tells a listener of all `slots`, or of none, and of changes from now on. Returns its number.
    pub(crate) fn join(
        &mut self,
        listener: Arc<dyn MemoryListener>,
        slots: &[RamSlot],
    ) -> Result<u64, RamError> {
        for (index, slot) in slots.iter().enumerate() {
            if let Err(source) = listener.slot_added(slot) {
                slots.iter().take(index).rev().for_each(|told| listener.slot_removed(told));
                return Err(refused(slot, source));
            }
        }
        let number = self.next;
        self.next += 1;
        self.list.push((number, listener));
        Ok(number)
    }
}

fn refused(slot: &RamSlot, source: Box<dyn Error + Send + Sync>) -> RamError {
    RamError::Listener { slot: slot.id, guest_addr: slot.guest_addr, size: slot.size, source }
}

/// Ends, when it is dropped, what [`Ram::listen`](crate::Ram::listen) began: the listener is not called any more once
/// the drop returns, not even to be told that slots are removed.
#[derive(Debug)]
#[must_use = "the listener is removed when this is dropped"]
pub struct ListenerGuard {
    pub(crate) listeners: Weak<Mutex<Listeners>>,
    pub(crate) number: u64,
}

impl Drop for ListenerGuard {
    fn drop(&mut self) {
        let Some(listeners) = self.listeners.upgrade() else { return };
        let mut listeners = listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let at = listeners.list.iter().position(|(number, _)| *number == self.number);
        let gone = at.map(|at| listeners.list.remove(at));
        // A listener may own what takes this lock when it is dropped.
        drop(listeners);
        drop(gone);
    }
}
