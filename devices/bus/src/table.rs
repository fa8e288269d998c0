//! The bus's table of ranges, and the steps by which an edit makes the next one of it.

use std::sync::Arc;

use crate::Mmio;

pub(crate) type Device = Arc<dyn Mmio>;

/// A range of addresses and who answers it.
#[derive(Clone)]
pub(crate) struct Entry {
    /// First address.
    pub(crate) base: u64,
    /// Addresses, not 0; the last of them exists.
    pub(crate) size: u64,
    pub(crate) owner: Arc<str>,
    pub(crate) device: Device,
}

impl Entry {
    /// Fails if the range is empty, or ends beyond the bus's last address.
    pub(crate) fn check(&self, last: u64) -> Result<(), BusError> {
        let &Self { base, size, ref owner, .. } = self;
        let Some(span) = size.checked_sub(1) else {
            return Err(BusError::Empty { owner: owner.to_string(), base });
        };
        if base.checked_add(span).is_none_or(|end| end > last) {
            return Err(BusError::Beyond { owner: owner.to_string(), base, size, last });
        }
        Ok(())
    }

    pub(crate) fn last(&self) -> u64 {
        self.base + (self.size - 1)
    }
}

/// Sorted by base, without overlaps; never changed.
#[derive(Clone, Default)]
pub(crate) struct Table {
    pub(crate) entries: Box<[Entry]>,
}

/// Why a range was not registered, removed, replaced or moved. The bus is as it was.
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
        /// The owner of the range that was there first.
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

fn position(entries: &[Entry], base: u64) -> Result<usize, BusError> {
    entries.binary_search_by_key(&base, |entry| entry.base).map_err(|_| BusError::NotFound { base })
}

/// Takes the range that begins at `base` out.
pub(crate) fn take(entries: &mut Vec<Entry>, base: u64) -> Result<Entry, BusError> {
    position(entries, base).map(|at| entries.remove(at))
}

/// Puts `device` into the range that begins at `base`, and takes the other one out.
pub(crate) fn exchange(entries: &mut [Entry], base: u64, device: Device) -> Result<Device, BusError> {
    let at = position(entries, base)?;
    let entry = entries.get_mut(at).ok_or(BusError::NotFound { base })?;
    Ok(std::mem::replace(&mut entry.device, device))
}

/// Puts a range in its place, unless it overlaps another one. Few are put to few: a sorted insertion of each keeps the
/// message exact and the code short.
pub(crate) fn place(entries: &mut Vec<Entry>, entry: Entry) -> Result<(), BusError> {
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
    Ok(())
}
