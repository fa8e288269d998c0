//! Guest RAM: what the machine is built with, and the slots that come and go while it runs.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::bitmap::Bitmap;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use crate::allocate::{Terms, allocate};
use crate::config::{Backing, RamConfig};
use crate::error::RamError;
use crate::listener::{ListenerGuard, Listeners, MemoryListener};
use crate::mapping::{Mapping, Options};
use crate::published::Published;
use crate::region::region;
use crate::slot::{RamSlot, SlotId};
use crate::{DirtyBitmap, Dma, GuestMmap, host_page_size};

/// The RAM of one guest.
///
/// It is a map that is published: [`add_slot`](Self::add_slot) and [`remove_slot`](Self::remove_slot) make a new
/// version of it while devices run. A [`Dma`] goes on with the version that it has until it is
/// [refreshed](Dma::refresh), and keeps the memory of that version mapped, so that no access is ever to memory that is
/// gone. Whatever has to be told of each change [listens](Self::listen).
#[derive(Debug)]
pub struct Ram {
    published: Arc<Published>,
    /// Locked while the map changes.
    listeners: Arc<Mutex<Listeners>>,
    terms: Terms,
    /// How many slots the guest was started with.
    permanent: u64,
    next_slot: AtomicU64,
}

impl Ram {
    /// Maps the RAM. Touches no page of it, unless it is to be prefaulted.
    pub fn new(config: &RamConfig) -> Result<Self, RamError> {
        let size = config.size;
        let &RamConfig { thp, prefault, dump, overcommit, .. } = config;
        let terms = Terms { options: Options { thp, prefault, dump }, overcommit };
        let pieces = split(config)?;
        let mapping = Arc::new(allocate(size, &config.backing, &terms, 0)?);
        let mut regions = Vec::with_capacity(pieces.len());
        let mut offset = 0;
        for (guest, len) in pieces {
            regions.push(region(&mapping, offset, len, guest).ok_or(RamError::AddressSpace { size })?);
            offset += len;
        }
        Self::of_regions(regions, terms, size)
    }

    /// RAM that somebody else has mapped with vm-memory, at the same addresses. Both see what either writes, and it stays
    /// mapped until both let go. Every region has to consist of whole pages of the host.
    ///
    /// It stays its owner's: the guest cannot [discard](Dma::discard) it, [`map_file`](crate::map_file) does not
    /// map over it. [`clear`](Self::clear) makes it zeros. What devices write is marked in a
    /// [`DirtyLog`](crate::DirtyLog), not in a bitmap `B` of the owner's: migrate by the former.
    ///
    /// ```
    /// use ossature_memory::Ram;
    /// use ossature_memory::vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};
    ///
    /// let theirs = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 1 << 20)])?;
    /// let ram = Ram::from_memory(&theirs)?;
    /// ram.dma().write(GuestAddress(0x1000), b"seen")?;
    /// assert_eq!(theirs.read_obj::<[u8; 4]>(GuestAddress(0x1000))?, *b"seen");
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_memory<B>(memory: &GuestMemoryMmap<B>) -> Result<Self, RamError>
    where
        B: Bitmap + Send + Sync + 'static,
    {
        let page_size = host_page_size() as u64;
        let mut size = 0;
        let mut regions = Vec::new();
        for theirs in memory.iter() {
            let (guest_addr, len) = (theirs.start_addr().0, theirs.len());
            if !guest_addr.is_multiple_of(page_size) {
                return Err(RamError::SlotUnaligned { guest_addr, page_size });
            }
            if !(len | theirs.as_ptr().addr() as u64).is_multiple_of(page_size) {
                return Err(RamError::Unaligned { size: len, page_size });
            }
            if theirs.get_mmap().prot() & READ_WRITE != READ_WRITE {
                return Err(RamError::NotWritable { guest_addr });
            }
            let none = || RamError::AddressSpace { size: len };
            let mapping = Mapping::of_region(theirs.get_mmap()).map(Arc::new).ok_or_else(none)?;
            regions.push(region(&mapping, 0, theirs.size(), guest_addr).ok_or_else(none)?);
            size += len;
        }
        let options = Options { thp: false, prefault: false, dump: true };
        Self::of_regions(regions, Terms { options, overcommit: false }, size)
    }

    fn of_regions(
        regions: Vec<GuestRegionMmap<DirtyBitmap>>,
        terms: Terms,
        size: u64,
    ) -> Result<Self, RamError> {
        let slots: Vec<_> =
            (0..).zip(&regions).map(|(id, region)| RamSlot::new(SlotId(id), region)).collect();
        let permanent = slots.len() as u64;
        let map = GuestMmap::from_regions(regions).map_err(|_| RamError::AddressSpace { size })?;
        Ok(Self {
            published: Arc::new(Published::new(Arc::new(map), slots)),
            listeners: Arc::default(),
            terms,
            permanent,
            next_slot: AtomicU64::new(permanent),
        })
    }

    /// Bytes of RAM.
    pub fn size(&self) -> u64 {
        self.slots().map(|slot| slot.size).sum()
    }

    /// The regions as they are now, for code that works with vm-memory's traits.
    pub fn map(&self) -> Arc<GuestMmap> {
        self.published.snapshot().mem
    }

    /// A device's view of all RAM.
    pub fn dma(&self) -> Dma {
        Dma::following(self.published.clone())
    }

    /// The contiguous pieces as they are now, by ascending guest address.
    pub fn slots(&self) -> impl ExactSizeIterator<Item = RamSlot> + use<> {
        self.published.slots().0.to_vec().into_iter()
    }

    /// Adds `size` bytes of RAM at `guest_addr`, both multiples of [`Backing::page_size`]. Huge pages, prefaulting, core
    /// dumps and overcommitment are as the RAM was configured.
    ///
    /// Every [listener](Self::listen) is told first, and may refuse; devices reach it afterwards. A slot that overlaps
    /// RAM is refused. A machine's listener refuses what overlaps a device; telling the guest is up to the caller.
    pub fn add_slot(&self, guest_addr: u64, size: u64, backing: &Backing) -> Result<SlotId, RamError> {
        let listeners = self.lock();
        if self.published.is_used_elsewhere() {
            return Err(RamError::InUse);
        }
        let page_size = backing.page_size();
        if !guest_addr.is_multiple_of(page_size) {
            return Err(RamError::SlotUnaligned { guest_addr, page_size });
        }
        let end = guest_addr.checked_add(size).ok_or(RamError::AddressSpace { size })?;
        let mut slots: Vec<RamSlot> = self.slots().collect();
        for &RamSlot { guest_addr: other_addr, size: other_size, .. } in &slots {
            if other_addr < end && guest_addr < other_addr + other_size {
                return Err(RamError::Overlap { guest_addr, size, other_addr, other_size });
            }
        }
        let mapping = Arc::new(allocate(size, backing, &self.terms, self.size())?);
        let all = || region(&mapping, 0, usize::try_from(size).ok()?, guest_addr);
        let region = Arc::new(all().ok_or(RamError::AddressSpace { size })?);
        let map = self.map().insert_region(region.clone()).map_err(|_| RamError::AddressSpace { size })?;
        let id = SlotId(self.next_slot.fetch_add(1, Ordering::Relaxed));
        let slot = RamSlot::new(id, &region);
        listeners.added(&slot)?;
        slots.insert(slots.partition_point(|other| other.guest_addr < guest_addr), slot);
        self.published.publish(map, slots);
        Ok(id)
    }

    /// Removes a slot that [`add_slot`](Self::add_slot) added. Views that exist reach it until they are refreshed; then
    /// the memory is unmapped. Every [listener](Self::listen) is told, the last one first.
    pub fn remove_slot(&self, id: SlotId) -> Result<(), RamError> {
        let listeners = self.lock();
        let mut slots: Vec<RamSlot> = self.slots().collect();
        let at = slots.iter().position(|slot| slot.id == id).ok_or(RamError::NoSlot { slot: id })?;
        if id.0 < self.permanent {
            return Err(RamError::Permanent { slot: id });
        }
        if self.published.is_used_elsewhere() {
            return Err(RamError::InUse);
        }
        let slot = slots.remove(at);
        let start = GuestAddress(slot.guest_addr);
        let removed = self.map().remove_region(start, slot.size);
        let (map, _) = removed.map_err(|_| RamError::NoSlot { slot: id })?;
        self.published.publish(map, slots);
        listeners.removed(&slot);
        Ok(())
    }

    /// Tells `listener` of each slot that there is, and then of each that is added or removed, until the guard is
    /// dropped. If the listener refuses a slot, it is told that those before are removed, and is not called again.
    pub fn listen(&self, listener: Arc<dyn MemoryListener>) -> Result<ListenerGuard, RamError> {
        let mut listeners = self.lock();
        let number = listeners.join(listener, &self.published.slots().0)?;
        Ok(ListenerGuard { listeners: Arc::downgrade(&self.listeners), number })
    }

    /// Makes all RAM what it was when it was made, for a guest that starts again. Call it while no vCPU and no device
    /// runs: their writes may survive or not.
    ///
    /// RAM reads as zero, and the host has the pages back, except where that is not what it was: a private
    /// [file](Backing::File) has its bytes again, and the shared file of a slot that was [added](Self::add_slot) stays as
    /// it is, since it belongs to its owner. A shared file that this RAM was made of is zeroed: it is the guest's RAM,
    /// and kernels take it for zero. What [`map_file`](crate::map_file) put over RAM is gone. Prefaulted RAM is taken from
    /// the host again. Pages from a pool stay with the guest.
    pub fn clear(&self) -> Result<(), RamError> {
        // So that slots neither come nor go.
        let _listeners = self.lock();
        for slot in self.slots() {
            let permanent = slot.id.0 < self.permanent;
            slot.clear(permanent).map_err(|(call, source)| RamError::Host {
                size: slot.size,
                call,
                source,
            })?;
        }
        Ok(())
    }

    pub(crate) fn published(&self) -> &Arc<Published> {
        &self.published
    }

    fn lock(&self) -> MutexGuard<'_, Listeners> {
        self.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What RAM has to be mapped for.
const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;

/// Guest address and length of each contiguous piece.
fn split(config: &RamConfig) -> Result<Vec<(u64, usize)>, RamError> {
    let &RamConfig { size, ref gap, .. } = config;
    let page_size = config.backing.page_size();
    if gap.start > gap.end || gap.start % page_size != 0 || gap.end % page_size != 0 {
        return Err(RamError::Gap { gap: gap.clone(), page_size });
    }
    let low = if gap.is_empty() { size } else { size.min(gap.start) };
    let pieces = [(0, low), (gap.end, size - low)];
    pieces
        .into_iter()
        .filter(|&(_, len)| len != 0)
        .map(|(guest, len)| {
            guest.checked_add(len)?;
            Some((guest, usize::try_from(len).ok()?))
        })
        .collect::<Option<_>>()
        .ok_or(RamError::AddressSpace { size })
}

#[cfg(test)]
mod tests;
