//! Ranges of registers that move while the machine runs.

use std::sync::atomic::Ordering;

use ossature_bus::{AddressSpace, RangeId};

use super::{Board, lock};
use crate::arch;
use crate::machine::wiring::WiredRange;

impl Board {
    /// Moves a range to where its device wants it, or leaves it where it is. Called by vCPUs.
    pub(in crate::machine) fn remap(&self, id: RangeId) {
        let mut wired = lock(&self.wired);
        let mut ranges = wired.values_mut().flat_map(|wiring| &mut wiring.ranges);
        let Some(range) = ranges.find(|range| range.registers.id() == id) else { return };
        let wanted = range.registers.wanted();
        if range.request.movable && self.move_range(range, wanted) {
            range.registers.moved(wanted);
        } else {
            self.refused_moves.fetch_add(1, Ordering::Relaxed);
            range.registers.moved(range.registers.base());
        }
    }

    /// Returns false if the range cannot be there; it is where it was then.
    pub(super) fn move_range(&self, range: &mut WiredRange, to: Option<u64>) -> bool {
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
