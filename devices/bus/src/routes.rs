//! A cursor's own copy of the bus's table, in the order in which a guest uses it: the range of the last access first.

use std::mem;
use std::sync::Arc;

use crate::table::{Entry, Table};
use crate::{Access, BusFault, Effect, Mmio};

/// A range of addresses and the device that answers it.
pub(crate) struct Route {
    /// First address.
    pub(crate) base: u64,
    /// Addresses: not even a range that ends at the last address there is has more than this can say.
    pub(crate) size: u64,
    pub(crate) device: Arc<dyn Mmio>,
}

/// All ranges. A search touches only their first addresses, which lie close together; a range moves in and out of
/// its place as a whole, so that no reference count, which other threads would share, ever changes.
pub(crate) struct Routes {
    /// The range of the last access.
    hot: Route,
    /// The place of the hot one.
    at: usize,
    /// First addresses, ascending.
    bases: Box<[u64]>,
    /// In the same order; in the place of the hot one is a stand-in without addresses.
    routes: Box<[Route]>,
}

impl From<&Table> for Routes {
    fn from(table: &Table) -> Self {
        let entries = &table.entries;
        let route =
            |entry: &Entry| Route { base: entry.base, size: entry.size, device: entry.device.clone() };
        let mut routes = Self {
            hot: Route { base: 0, size: 0, device: Arc::new(Nobody) },
            at: 0,
            bases: entries.iter().map(|entry| entry.base).collect(),
            routes: entries.iter().map(route).collect(),
        };
        routes.swap();
        routes
    }
}

impl Routes {
    /// The range that holds `addr`, and how far from its start.
    #[inline]
    pub(crate) fn find(&mut self, addr: u64) -> Option<(&Route, u64)> {
        if addr.wrapping_sub(self.hot.base) >= self.hot.size {
            self.search(addr)?;
        }
        Some((&self.hot, addr.wrapping_sub(self.hot.base)))
    }

    /// Makes the range that holds `addr` the hot one; `None` where there is none.
    #[inline(never)]
    fn search(&mut self, addr: u64) -> Option<()> {
        let index = self.bases.partition_point(|base| *base <= addr).checked_sub(1)?;
        // In the place of the hot one, which does not hold `addr`, is the stand-in, which does not either.
        let route = self.routes.get(index)?;
        if addr - route.base >= route.size {
            return None;
        }
        self.swap();
        self.at = index;
        self.swap();
        Some(())
    }

    /// Exchanges the hot range and what is in its place.
    #[inline]
    fn swap(&mut self) {
        if let Some(place) = self.routes.get_mut(self.at) {
            mem::swap(place, &mut self.hot);
        }
    }
}

/// Stands in where a device has to be: is never asked.
struct Nobody;

impl Mmio for Nobody {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Err(BusFault::Unmapped)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Err(BusFault::Unmapped)
    }
}
