//! The bus: which device answers which addresses. Here it is edited; [`BusCursor`] dispatches.

use std::fmt;

use crate::publish::{Publisher, Reader};
use crate::sync::{Arc, Mutex, lock};
use crate::table::{self, BusError, Device, Entry, Table};
use crate::{AddressSpace, BusCursor};

/// A range and the device that is to answer it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Registration {
    /// First address.
    pub base: u64,
    /// Addresses in the range, not 0.
    pub size: u64,
    /// The owner's name in messages: a device's id.
    pub owner: String,
    /// What answers.
    pub device: Device,
}

impl Registration {
    /// `device`, which is `owner`'s, for the `size` addresses from `base`.
    pub fn new(base: u64, size: u64, owner: impl Into<String>, device: Device) -> Self {
        Self { base, size, owner: owner.into(), device }
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x} {}", self.base, self.size, self.owner)
    }
}

struct Shared {
    last: u64,
    publisher: Arc<Publisher<Table>>,
    /// Held from reading the old table to publishing the new one.
    edit: Mutex<()>,
}

/// An address space with devices in it: memory-mapped registers, or I/O ports. A handle, cheap to clone; each
/// thread that dispatches has a [`cursor`](Self::cursor).
///
/// Edits work at any time, from any thread, and never wait for a dispatch: each builds a new table and publishes it.
/// Devices come and go between two accesses of a vCPU.
#[derive(Clone)]
pub struct Bus {
    shared: Arc<Shared>,
}

impl Bus {
    /// An empty bus. Its last address is that of the address space: `u64::MAX`, or port `0xffff`.
    pub fn new(space: AddressSpace) -> Self {
        let last = match space {
            AddressSpace::Mmio => u64::MAX,
            AddressSpace::Pio => 0xffff,
        };
        let publisher = Arc::new(Publisher::new(Table::default()));
        Self { shared: Arc::new(Shared { last, publisher, edit: Mutex::new(()) }) }
    }

    /// Registers `device` for the `size` addresses from `base`. `owner` names it in messages.
    pub fn insert(&self, base: u64, size: u64, owner: &str, device: Device) -> Result<(), BusError> {
        self.insert_all([Registration::new(base, size, owner, device)])
    }

    /// Registers all of `registrations` at once, or none.
    pub fn insert_all(&self, registrations: impl IntoIterator<Item = Registration>) -> Result<(), BusError> {
        let mut added = Vec::new();
        for Registration { base, size, owner, device } in registrations {
            let entry = Entry { base, size, owner: owner.into(), device };
            entry.check(self.shared.last)?;
            added.push(entry);
        }
        self.edit(|entries| added.into_iter().try_for_each(|entry| table::place(entries, entry)))?;
        Ok(())
    }

    /// Removes the range that begins at `base`. Accesses that have begun go on; later ones reach no device. The
    /// [`Retired`] device tells when the last one has ended.
    pub fn remove(&self, base: u64) -> Result<Retired, BusError> {
        let (entry, generation) = self.edit(|entries| table::take(entries, base))?;
        Ok(self.retired(generation, entry.device))
    }

    /// Has `device` answer the range that begins at `base`, instead of the one that does so far. Each access finds
    /// the one or the other.
    pub fn replace(&self, base: u64, device: Device) -> Result<Retired, BusError> {
        let (old, generation) = self.edit(|entries| table::exchange(entries, base, device))?;
        Ok(self.retired(generation, old))
    }

    /// Replaces the devices of several ranges at once, or none: each range is named by its first address. No access
    /// finds an old device after one that has found a new one. The retired devices come in the same order.
    pub fn replace_all(
        &self,
        devices: impl IntoIterator<Item = (u64, Device)>,
    ) -> Result<Vec<Retired>, BusError> {
        // The caller's iterator is at its end before the lock is taken.
        let devices: Vec<_> = devices.into_iter().collect();
        let (old, generation) = self.edit(|entries| {
            let exchanges = devices.into_iter().map(|(base, device)| table::exchange(entries, base, device));
            exchanges.collect::<Result<Vec<_>, _>>()
        })?;
        Ok(old.into_iter().map(|device| self.retired(generation, device)).collect())
    }

    /// Moves the range that begins at `old_base` to `new_base`, as a guest does that changes a PCI device's base
    /// address. The places may overlap each other. Each access finds the device at the old place or at the new one.
    pub fn relocate(&self, old_base: u64, new_base: u64) -> Result<(), BusError> {
        self.edit(|entries| {
            let entry = Entry { base: new_base, ..table::take(entries, old_base)? };
            entry.check(self.shared.last)?;
            table::place(entries, entry)
        })?;
        Ok(())
    }

    /// Publishes the table that `f` makes of the current one, and returns its generation. If `f` fails, nothing
    /// changes.
    fn edit<R>(&self, f: impl FnOnce(&mut Vec<Entry>) -> Result<R, BusError>) -> Result<(R, u64), BusError> {
        let _edit = lock(&self.shared.edit);
        let mut entries = self.shared.publisher.with(|table| table.entries.to_vec());
        let result = f(&mut entries)?;
        Ok((result, self.shared.publisher.publish(Table { entries: entries.into() })))
    }

    fn retired(&self, generation: u64, device: Device) -> Retired {
        Retired { publisher: self.shared.publisher.clone(), generation, device }
    }

    /// A new thread's access to the bus.
    pub fn cursor(&self) -> BusCursor {
        BusCursor::new(Reader::new(self.shared.publisher.clone()))
    }
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = |entry: &Entry| format!("{:#x}..={:#x} {}", entry.base, entry.last(), entry.owner);
        let ranges = self.shared.publisher.with(|table| table.entries.iter().map(range).collect::<Vec<_>>());
        f.debug_tuple("Bus").field(&ranges).finish()
    }
}

/// A device that was removed from a [`Bus`], or from one of its ranges, and that cursors may still be dispatching to.
///
/// It is *passed* when each cursor has dispatched, or called [`sync`](BusCursor::sync), or was dropped since the
/// removal. A vCPU that runs guest code does none of this: kick it first. From then on that range holds no reference to
/// the device and no longer calls it.
#[must_use]
pub struct Retired {
    publisher: Arc<Publisher<Table>>,
    generation: u64,
    device: Device,
}

impl Retired {
    /// Returns true if no cursor can reach the device any more.
    pub fn is_passed(&self) -> bool {
        self.publisher.is_passed(self.generation)
    }

    /// Returns when no cursor can reach the device any more. A thread that owns a cursor must not wait here:
    /// it would wait for itself.
    pub fn wait(&self) {
        self.publisher.wait(self.generation);
    }

    /// The device, once no cursor can reach it; itself again before that.
    pub fn into_device(self) -> Result<Device, Self> {
        if self.is_passed() { Ok(self.device) } else { Err(self) }
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired").field("passed", &self.is_passed()).finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;

#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
