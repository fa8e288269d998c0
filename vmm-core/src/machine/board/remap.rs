//! Ranges of registers that move while the machine runs.

use std::sync::atomic::Ordering;

use ossature_bus::{AddressSpace, RangeId};

use super::{Board, Slot, lock};
use crate::arch;
use crate::machine::error::LifecycleError;
use crate::machine::wiring::{WiredRange, Wiring};

impl Board {
    /// Moves the ranges of the device that `id` belongs to where it wants them, or leaves them where they are. Called by
    /// vCPUs.
    pub(in crate::machine) fn remap(&self, id: RangeId) {
        let mut wired = lock(&self.wired);
        let has = |wiring: &&mut Wiring| wiring.ranges.iter().any(|range| range.registers.id() == id);
        let Some(wiring) = wired.values_mut().find(has) else { return };
        let refused = self.move_all(wiring.ranges.iter_mut());
        self.refused_moves.fetch_add(refused.len() as u64, Ordering::Relaxed);
    }

    /// Moves all ranges where their devices want them, as after a reset, or fails.
    pub(super) fn settle(&self, slots: &[Slot]) -> Result<(), LifecycleError> {
        let mut wired = lock(&self.wired);
        let refused = self.move_all(wired.values_mut().flat_map(|wiring| &mut wiring.ranges));
        let Some(&id) = refused.first() else { return Ok(()) };
        let owns = |slot: &&Slot| slot.assigned.all_registers().iter().any(|range| range.id() == id);
        let (id, name) = match slots.iter().find(owns) {
            Some(slot) => {
                let range = slot.assigned.all_registers().iter().find(|range| range.id() == id);
                (slot.device.id().to_owned(), range.map_or("registers".into(), |range| range.name()))
            }
            None => (String::new(), "registers".into()),
        };
        Err(LifecycleError::Moved { id, name })
    }

    /// Moves each range where it is wanted, and returns those that cannot be there. They are where they were, unless that
    /// place has been taken too.
    fn move_all<'a>(&self, ranges: impl Iterator<Item = &'a mut WiredRange>) -> Vec<RangeId> {
        let mut moving = Vec::new();
        for range in ranges {
            let (from, to) = (range.registers.base(), range.registers.wanted());
            if from != to {
                moving.push((range, from, to));
            }
        }
        // One may be where another one belongs.
        if moving.len() > 1 {
            for (range, ..) in &mut moving {
                self.move_to(range, None);
            }
        }
        let mut refused = Vec::new();
        for (range, from, to) in moving {
            if !(range.request.movable && self.move_to(range, to)) {
                refused.push(range.registers.id());
                self.move_to(range, from);
            }
            // Another vCPU may have moved it once more: its effect is still to come.
            range.registers.served(to);
        }
        refused
    }

    /// Returns false if the range cannot be there; it is where it was then.
    fn move_to(&self, range: &mut WiredRange, to: Option<u64>) -> bool {
        let moved = self.move_range(range, to);
        let base = if moved { to } else { range.registers.base() };
        range.registers.now_at(base);
        moved
    }

    /// Returns false if the range cannot be there; it is where it was then.
    fn move_range(&self, range: &mut WiredRange, to: Option<u64>) -> bool {
        let bus = self.bus(range.request.space);
        let from = range.registers.base();
        if from == to {
            return true;
        }
        if to.is_some_and(|base| !self.is_free_for(range, base)) {
            return false;
        }
        let edit = |from: Option<u64>, to: Option<u64>| match (from, to, range.registers.port()) {
            (Some(from), Some(to), _) => bus.relocate(from, to).is_ok(),
            (Some(from), None, _) => bus.remove(from).map(drop).is_ok(),
            (None, Some(to), Some(port)) => {
                bus.insert(to, range.request.size, &range.request.name.to_string(), port).is_ok()
            }
            _ => false,
        };
        if !edit(from, to) {
            return false;
        }
        if range.reconnect(&*self.vm, to).is_ok() {
            return true;
        }
        // Back to where it was a moment ago, and nothing else can be there: edits hold the lock.
        let port = range.registers.port();
        let _ = match (from, to) {
            (Some(from), Some(to)) => bus.relocate(to, from).is_ok(),
            (Some(from), None) => port.is_some_and(|port| {
                bus.insert(from, range.request.size, &range.request.name.to_string(), port).is_ok()
            }),
            (None, Some(to)) => bus.remove(to).is_ok(),
            (None, None) => true,
        };
        false
    }

    /// Returns true if the platform is not in the way of `range` at `base`; the bus knows the rest.
    fn is_free_for(&self, range: &WiredRange, base: u64) -> bool {
        let Some(last) = base.checked_add(range.request.size.saturating_sub(1)) else { return false };
        if !base.is_multiple_of(range.request.align) {
            return false;
        }
        match range.request.space {
            AddressSpace::Pio => last <= u64::from(u16::MAX),
            AddressSpace::Mmio => !arch::is_reserved(&(base..=last)),
        }
    }
}
