//! Stands in for the bus's cursor until that lands.
use std::sync::Arc;

use ossature_bus::{Access, Effect, Mmio, Size};

/// A device that answers everything.
pub struct BusCursor(Arc<dyn Mmio>);

impl std::fmt::Debug for BusCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("BusCursor")
    }
}

impl BusCursor {
    /// A cursor.
    pub fn new(device: Arc<dyn Mmio>) -> Self {
        Self(device)
    }
    pub(crate) fn read(&mut self, addr: u64, size: Size) -> u64 {
        self.0.read(Access { offset: addr, size }).unwrap_or(size.mask())
    }
    pub(crate) fn write(&mut self, addr: u64, size: Size, value: u64) -> Effect {
        self.0.write(Access { offset: addr, size }, value).unwrap_or(Effect::None)
    }
}
