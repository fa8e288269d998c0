//! RAM claims its addresses on the bus, so that neither a device nor RAM gets in where the other one is.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use ossature_bus::{Access, Bus, BusFault, Effect, Mmio};
use ossature_memory::{MemoryListener, RamSlot};

use crate::arch;

/// Registers each slot on the bus of memory accesses.
pub(super) struct RamClaims(pub(super) Bus);

impl fmt::Debug for RamClaims {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RamClaims")
    }
}

impl MemoryListener for RamClaims {
    fn slot_added(&self, slot: &RamSlot) -> Result<(), Box<dyn Error + Send + Sync>> {
        let last = slot.guest_addr + (slot.size - 1);
        if arch::is_reserved(&(slot.guest_addr..=last)) {
            return Err("the platform's own registers are there".into());
        }
        Ok(self.0.insert(slot.guest_addr, slot.size, "RAM", Arc::new(Absent))?)
    }

    fn slot_removed(&self, slot: &RamSlot) {
        // It was inserted when the slot was added, and nothing else moves it.
        let _ = self.0.remove(slot.guest_addr);
    }
}

/// No register: the hypervisor answers for RAM.
struct Absent;

impl Mmio for Absent {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Err(BusFault::Unmapped)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Err(BusFault::Unmapped)
    }
}
