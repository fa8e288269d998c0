//! All connections, found by their ports and by what the host's kernel says of them, and those that have something for
//! the guest. Nothing here takes longer the more there are.

use std::collections::{HashMap, VecDeque};

use super::packet::Key;

/// A place in the table, as it is occupied now: once it is free, it has another number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    index: u32,
    generation: u32,
}

impl Id {
    /// As a number of which at most the first 2^32 - 16 values of each half occur.
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_u64(number: u64) -> Self {
        Self { index: number as u32, generation: (number >> 32) as u32 }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    /// In `ready`.
    queued: bool,
    entry: Option<T>,
}

#[derive(Debug)]
pub(super) struct Table<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    keys: HashMap<Key, Id>,
    ready: VecDeque<Id>,
    max: usize,
}

impl<T> Table<T> {
    /// An empty one for up to `max` entries.
    pub(super) fn new(max: usize) -> Self {
        Self { slots: Vec::new(), free: Vec::new(), keys: HashMap::new(), ready: VecDeque::new(), max }
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len() >= self.max
    }

    /// Returns true if there are connections.
    pub(super) fn has_keys(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Adds an entry, if there is room.
    pub(super) fn insert(&mut self, entry: T) -> Option<Id> {
        if self.is_full() {
            return None;
        }
        let index = match self.free.pop() {
            Some(index) => index,
            None => {
                self.slots.push(Slot { generation: 0, queued: false, entry: None });
                self.slots.len() as u32 - 1
            }
        };
        let slot = self.slots.get_mut(index as usize)?;
        slot.entry = Some(entry);
        Some(Id { index, generation: slot.generation })
    }

    fn slot(&mut self, id: Id) -> Option<&mut Slot<T>> {
        self.slots.get_mut(id.index as usize).filter(|slot| slot.generation == id.generation)
    }

    pub(super) fn get(&mut self, id: Id) -> Option<&mut T> {
        self.slot(id)?.entry.as_mut()
    }

    /// Makes another entry of one, in its place.
    pub(super) fn update(&mut self, id: Id, f: impl FnOnce(T) -> T) {
        if let Some(slot) = self.slot(id) {
            slot.entry = slot.entry.take().map(f);
        }
    }

    pub(super) fn contains(&self, id: Id) -> bool {
        let slot = self.slots.get(id.index as usize);
        slot.is_some_and(|slot| slot.generation == id.generation && slot.entry.is_some())
    }

    pub(super) fn remove(&mut self, id: Id) -> Option<T> {
        let slot = self.slot(id)?;
        let entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        slot.queued = false;
        self.free.push(id.index);
        Some(entry)
    }

    /// Lets an entry be found by these ports.
    pub(super) fn name(&mut self, key: Key, id: Id) {
        self.keys.insert(key, id);
    }

    pub(super) fn unname(&mut self, key: Key) {
        self.keys.remove(&key);
    }

    pub(super) fn find(&self, key: Key) -> Option<Id> {
        self.keys.get(&key).copied()
    }

    /// Has an entry wait for its turn with the guest, if it does not already.
    pub(super) fn queue(&mut self, id: Id) {
        if let Some(slot) = self.slot(id).filter(|slot| !slot.queued) {
            slot.queued = true;
            self.ready.push_back(id);
            self.compact();
        }
    }

    /// Those that ended while they waited are forgotten before they are more than those that there are.
    fn compact(&mut self) {
        if self.ready.len() > 2 * self.len() + 64 {
            let slots = &self.slots;
            self.ready.retain(|id| {
                slots.get(id.index as usize).is_some_and(|slot| slot.generation == id.generation)
            });
        }
    }

    /// The next that waits for its turn.
    pub(super) fn next_ready(&mut self) -> Option<Id> {
        while let Some(id) = self.ready.pop_front() {
            if let Some(slot) = self.slot(id).filter(|slot| slot.queued) {
                slot.queued = false;
                return Some(id);
            }
        }
        None
    }

    /// Returns true if somebody may wait.
    pub(super) fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.keys.clear();
        self.ready.clear();
        self.free.clear();
        for (index, slot) in self.slots.iter_mut().enumerate() {
            slot.entry = None;
            slot.queued = false;
            slot.generation = slot.generation.wrapping_add(1);
            self.free.push(index as u32);
        }
    }
}
