//! The memory map that all views of a guest's RAM follow: a version of it, and where the newest one is.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion, GuestRegionMmap};

use crate::{DirtyLogError, GuestMmap, RamSlot, Window};

/// Guest-physical addresses that are RAM from the first to the last, as [`Dma::run`](crate::Dma::run) finds them. To
/// check one range after the other, look into the run of the one before first: it nearly always holds the next one too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    first: u64,
    /// Bytes: no RAM goes to the last of all addresses.
    len: u64,
}

impl Run {
    /// Returns true if `len` bytes from `addr` are in it. No bytes are not.
    #[inline]
    pub fn holds(&self, addr: GuestAddress, len: u64) -> bool {
        // An address below the first wraps to more than any length. A sum that wraps is less than the offset, and that of
        // no bytes is the same.
        let offset = addr.0.wrapping_sub(self.first);
        let end = offset.wrapping_add(len);
        offset < end && end <= self.len
    }
}

/// One version of a guest's memory map. It keeps mapped what it shows.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) mem: Arc<GuestMmap>,
    /// Each region from its first to its last byte, ascending: nearly every access lies in one of them, and
    /// there are few, so that trying them in turn beats any search.
    pub(crate) regions: Arc<[Window]>,
    /// The first of them, where most guests have all their RAM.
    pub(crate) front: Option<Window>,
    /// Ascending; regions that touch are one run.
    pub(crate) runs: Arc<[Run]>,
    pub(crate) generation: u64,
}

impl Snapshot {
    fn new(mem: Arc<GuestMmap>, generation: u64) -> Self {
        let mut runs: Vec<Run> = Vec::new();
        for region in mem.iter() {
            let (first, len) = (region.start_addr().0, region.len());
            match runs.last_mut() {
                Some(run) if run.first + run.len == first => run.len += len,
                _ => runs.push(Run { first, len }),
            }
        }
        let whole = |region: &GuestRegionMmap<_>| {
            Window::new(region.get_mmap(), region.start_addr().0, 0, region.size())
        };
        let regions: Arc<[Window]> = mem.iter().filter_map(whole).collect();
        Self { front: regions.first().cloned(), regions, runs: runs.into(), mem, generation }
    }
}

/// Where the newest version of a guest's memory map is.
#[derive(Debug)]
pub(crate) struct Published {
    generation: AtomicU64,
    newest: Mutex<Newest>,
    /// [`LOGGED`] if a [`DirtyLog`](crate::DirtyLog) takes the marks of the map's regions, or else how many write where
    /// none would see it.
    writers: AtomicU32,
}

const LOGGED: u32 = u32::MAX;

#[derive(Debug)]
struct Newest {
    map: Snapshot,
    /// The regions that [`Ram`](crate::Ram) made, ascending.
    slots: Arc<[RamSlot]>,
}

impl Published {
    /// Publishes the first version.
    pub(crate) fn new(mem: Arc<GuestMmap>, slots: Vec<RamSlot>) -> Self {
        let newest = Newest { map: Snapshot::new(mem, 0), slots: slots.into() };
        Self { generation: AtomicU64::new(0), newest: Mutex::new(newest), writers: AtomicU32::new(0) }
    }

    /// Returns true if the version of that generation is the newest. Whoever was told of a change by the thread that
    /// published it, in whatever way, sees it.
    #[inline]
    pub(crate) fn is_newest(&self, generation: u64) -> bool {
        // Nothing is read that depends on it: a newer version is taken with the lock.
        self.generation.load(Ordering::Relaxed) == generation
    }

    /// The newest version.
    pub(crate) fn snapshot(&self) -> Snapshot {
        self.newest().map.clone()
    }

    /// The slots of the newest version, and its generation.
    pub(crate) fn slots(&self) -> (Arc<[RamSlot]>, u64) {
        let newest = self.newest();
        (newest.slots.clone(), newest.map.generation)
    }

    /// Makes `mem` the newest version.
    pub(crate) fn publish(&self, mem: GuestMmap, slots: Vec<RamSlot>) {
        let mut newest = self.newest();
        let generation = newest.map.generation.wrapping_add(1);
        *newest = Newest { map: Snapshot::new(Arc::new(mem), generation), slots: slots.into() };
        self.generation.store(generation, Ordering::Relaxed);
    }

    /// Has writes logged, of which there must be none that the log would not see.
    pub(crate) fn begin_log(&self) -> Result<(), DirtyLogError> {
        match self.writers.compare_exchange(0, LOGGED, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => Ok(()),
            Err(LOGGED) => Err(DirtyLogError::Running),
            Err(_) => Err(DirtyLogError::Unlogged),
        }
    }

    pub(crate) fn end_log(&self) {
        self.writers.store(0, Ordering::Release);
    }

    /// Counts one more who writes where no log sees it.
    pub(crate) fn begin_unlogged(&self) -> Result<(), DirtyLogError> {
        let more = |writers: u32| writers.checked_add(1).filter(|more| *more < LOGGED);
        let counted = self.writers.fetch_update(Ordering::AcqRel, Ordering::Acquire, more);
        counted.map(drop).map_err(|_| DirtyLogError::Running)
    }

    /// Returns true if somebody else, who would not notice a change of the map, writes.
    pub(crate) fn is_used_elsewhere(&self) -> bool {
        !matches!(self.writers.load(Ordering::Acquire), 0 | LOGGED)
    }

    pub(crate) fn end_unlogged(&self) {
        self.writers.fetch_sub(1, Ordering::AcqRel);
    }

    fn newest(&self) -> MutexGuard<'_, Newest> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
