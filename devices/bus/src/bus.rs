//! The bus: which device answers which addresses. Here it is edited; [`BusCursor`] dispatches.

use std::fmt;

use crate::publish::{Publisher, Reader};
use crate::sync::{Arc, Mutex, lock};
use crate::{AddressSpace, BusCursor, Mmio};

type Device = std::sync::Arc<dyn Mmio>;

/// A range of addresses and who answers it.
#[derive(Clone)]
pub(crate) struct Entry {
    /// First address.
    pub(crate) base: u64,
    /// Addresses, not 0; the last of them exists.
    pub(crate) size: u64,
    owner: std::sync::Arc<str>,
    pub(crate) device: Device,
}

impl Entry {
    fn last(&self) -> u64 {
        self.base + (self.size - 1)
    }
}

/// Sorted by base, without overlaps; never changed.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) entries: Box<[Entry]>,
}

/// A range and the device that is to answer it.
#[derive(Clone)]
pub struct Registration {
    /// First address.
    pub base: u64,
    /// Addresses in the range, not 0.
    pub size: u64,
    /// Who it is, for messages: a device's id.
    pub owner: String,
    /// What answers.
    pub device: Device,
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}+{:#x} {}", self.base, self.size, self.owner)
    }
}

/// Why a range was not registered or removed. The bus is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusError {
    /// A range without addresses.
    #[error("{owner}: a range at {base:#x} has no addresses")]
    Empty {
        /// Whose.
        owner: String,
        /// First address.
        base: u64,
    },
    /// A range that ends beyond the last address of the bus.
    #[error("{owner}: the range {base:#x}+{size:#x} ends beyond {last:#x}")]
    Beyond {
        /// Whose.
        owner: String,
        /// First address.
        base: u64,
        /// Addresses in the range.
        size: u64,
        /// The last address of the bus.
        last: u64,
    },
    /// Two ranges share an address.
    #[error("{owner}: the range {base:#x}..={last:#x} overlaps {other_base:#x}..={other_last:#x} of {other}")]
    Overlap {
        /// Whose range was refused.
        owner: String,
        /// Its first address.
        base: u64,
        /// Its last address.
        last: u64,
        /// Who was there first.
        other: String,
        /// The first address of that range.
        other_base: u64,
        /// The last address of that range.
        other_last: u64,
    },
    /// No range begins there.
    #[error("no device is registered at {base:#x}")]
    NotFound {
        /// The address.
        base: u64,
    },
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
/// Registering and removing works at any time, from any thread, and never waits for a dispatch: it builds a
/// new table and publishes it. Devices come and go between two accesses of a vCPU.
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
        self.insert_all([Registration { base, size, owner: owner.into(), device }])
    }

    /// Registers all of `registrations` at once, or none.
    pub fn insert_all(&self, registrations: impl IntoIterator<Item = Registration>) -> Result<(), BusError> {
        let mut added = Vec::new();
        for Registration { base, size, owner, device } in registrations {
            let Some(span) = size.checked_sub(1) else {
                return Err(BusError::Empty { owner, base });
            };
            if base.checked_add(span).is_none_or(|last| last > self.shared.last) {
                return Err(BusError::Beyond { owner, base, size, last: self.shared.last });
            }
            added.push(Entry { base, size, owner: owner.into(), device });
        }

        let _edit = lock(&self.shared.edit);
        let mut entries = self.shared.publisher.with(|table| table.entries.to_vec());
        for entry in added {
            // Few are added to few: a sorted insertion of each keeps the message exact and the code short.
            let at = entries.partition_point(|other| other.base <= entry.base);
            let before = at.checked_sub(1).and_then(|before| entries.get(before));
            let after = entries.get(at);
            let overlap = before
                .filter(|before| before.last() >= entry.base)
                .or(after.filter(|after| after.base <= entry.last()));
            if let Some(other) = overlap {
                return Err(BusError::Overlap {
                    owner: entry.owner.to_string(),
                    base: entry.base,
                    last: entry.last(),
                    other: other.owner.to_string(),
                    other_base: other.base,
                    other_last: other.last(),
                });
            }
            entries.insert(at, entry);
        }
        self.shared.publisher.publish(Table { entries: entries.into() });
        Ok(())
    }

    /// Removes the range that begins at `base`. Accesses that have begun go on; later ones find nobody. The
    /// [`Retired`] range tells when the last one has ended.
    pub fn remove(&self, base: u64) -> Result<Retired, BusError> {
        let _edit = lock(&self.shared.edit);
        let mut entries = self.shared.publisher.with(|table| table.entries.to_vec());
        let Ok(at) = entries.binary_search_by_key(&base, |entry| entry.base) else {
            return Err(BusError::NotFound { base });
        };
        let device = entries.remove(at).device;
        let generation = self.shared.publisher.publish(Table { entries: entries.into() });
        Ok(Retired { publisher: self.shared.publisher.clone(), generation, device })
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

/// A range that was removed from a [`Bus`], and that cursors may still be dispatching to.
///
/// It is *passed* when each cursor has dispatched, or called [`sync`](BusCursor::sync), or was dropped since
/// the removal. A vCPU that runs guest code does none of this: kick it first. From then on the bus has no
/// reference to the device and calls it no more.
#[must_use]
pub struct Retired {
    publisher: Arc<Publisher<Table>>,
    generation: u64,
    device: Device,
}

impl Retired {
    /// Whether no cursor can reach the device any more.
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
