//! Which pages of a guest's RAM were written, by whomever: this process, vCPUs, other processes.

use std::ops::Range;
use std::sync::Arc;

use crate::published::Published;
use crate::slot::RamSlot;
use crate::{Dma, Ram, host_page_size};

const BITS: usize = u64::BITS as usize;

/// Why dirty pages cannot be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DirtyLogError {
    /// The dirty pages of this RAM are logged already.
    #[error("the dirty pages of this guest's memory are already logged")]
    Running,
    /// The host's kernel writes this RAM for a device ([`UnloggedWrites`]), and no log would be complete.
    #[error(
        "the host's kernel writes this guest's memory for a device (vhost), and no log of dirty pages sees that"
    )]
    Unlogged,
    /// A page that is said to be dirty is not RAM, or not any more.
    #[error("guest memory {addr:#x} is said to be dirty, and is not RAM")]
    NotRam {
        /// Guest-physical address of the page.
        addr: u64,
    },
    /// What is said to be dirty does not begin with a page.
    #[error(
        "guest memory {addr:#x} is said to be dirty, and is not the beginning of a page of {page_size} bytes"
    )]
    Misaligned {
        /// Guest-physical address.
        addr: u64,
        /// Bytes in a page.
        page_size: u64,
    },
}

/// Joins the pages that this process wrote with those that others report: a hypervisor, whose vCPUs are not seen here,
/// or a vhost-user peer. While it exists, this process's writes are tracked; dropping it ends that.
///
/// A hypervisor has a bitmap for each slot ([`merge_bitmap`](Self::merge_bitmap)) or a ring of pages
/// ([`merge_page`](Self::merge_page)). Pages are those of the [host](host_page_size), which KVM has them in. Of each page
/// of RAM, the log has three bits at most. A slot that is added while the log exists is dirty from its first to its last
/// page; one that is removed is forgotten.
///
/// ```
/// use ossature_memory::{DirtyLog, Ram, RamConfig, host_page_size, vm_memory::GuestAddress};
///
/// let page = host_page_size() as u64;
/// let ram = Ram::new(&RamConfig::new(64 * page))?;
/// let mut log = DirtyLog::start(&ram)?;
/// ram.dma().write_obj(GuestAddress(5 * page), 1u8)?;
/// log.merge_bitmap(0, &[0b101_0000])?;
/// assert!(log.take().ranges().eq([4 * page..7 * page]));
/// assert!(log.take().is_empty());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct DirtyLog {
    published: Arc<Published>,
    generation: u64,
    slots: Vec<Slot>,
    page_size: u64,
}

#[derive(Debug)]
struct Slot {
    ram: RamSlot,
    /// What others reported, as the bitmaps have it.
    reported: Vec<u64>,
}

impl Slot {
    fn new(ram: RamSlot) -> Self {
        ram.dirty().start();
        let reported = vec![0; ram.dirty().pages().div_ceil(BITS)];
        Self { ram, reported }
    }

    /// Marks the pages from `first` on whose bits are set; returns the first one that the slot does not have.
    fn merge(&mut self, first: usize, bits: u64) -> Option<usize> {
        let have = self.ram.dirty().pages().saturating_sub(first);
        let inside = if have >= BITS { u64::MAX } else { (1 << have) - 1 };
        let (word, shift) = (first / BITS, first % BITS);
        let wide = u128::from(bits & inside) << shift;
        for (at, part) in [(word, wide as u64), (word + 1, (wide >> BITS) as u64)] {
            self.reported.get_mut(at).into_iter().for_each(|word| *word |= part);
        }
        let outside = bits & !inside;
        (outside != 0).then(|| first + outside.trailing_zeros() as usize)
    }
}

impl DirtyLog {
    /// Starts to log with all pages clean. Writes that run at the same time may be missed: start while the machine is
    /// paused, or treat all RAM as dirty once afterwards.
    pub fn start(ram: &Ram) -> Result<Self, DirtyLogError> {
        let published = ram.published();
        published.begin_log()?;
        let (slots, generation) = published.slots();
        Ok(Self {
            published: published.clone(),
            generation,
            slots: slots.iter().cloned().map(Slot::new).collect(),
            page_size: host_page_size() as u64,
        })
    }

    /// Adds the pages that a bitmap has: bit `n % 64` of word `n / 64` is the page `n` pages from `guest_addr`, which is
    /// any page of a slot. That is the layout of `KVM_GET_DIRTY_LOG`.
    ///
    /// If a page is not RAM of that slot, the others are added all the same.
    pub fn merge_bitmap(&mut self, guest_addr: u64, words: &[u64]) -> Result<(), DirtyLogError> {
        let page_size = self.page_size;
        let (slot, first) = self.find(guest_addr)?;
        let mut stray = None;
        for (page, &bits) in (first..).step_by(BITS).zip(words) {
            if bits != 0 {
                stray = stray.or(slot.merge(page, bits));
            }
        }
        let place = |page: usize| slot.ram.guest_addr.saturating_add((page as u64).saturating_mul(page_size));
        stray.map_or(Ok(()), |page| Err(DirtyLogError::NotRam { addr: place(page) }))
    }

    /// Adds the page at `guest_addr`, as an entry of KVM's dirty ring names it.
    pub fn merge_page(&mut self, guest_addr: u64) -> Result<(), DirtyLogError> {
        let (slot, page) = self.find(guest_addr)?;
        slot.merge(page, 1);
        Ok(())
    }

    /// Takes the dirty pages and makes them clean. Each write of this process is in exactly one take, and its bytes can be
    /// read by whoever has taken the page.
    pub fn take(&mut self) -> DirtyPages {
        self.follow();
        let take = |slot: &mut Slot| {
            let mut words = slot.ram.dirty().take();
            for (word, reported) in words.iter_mut().zip(&mut slot.reported) {
                *word |= std::mem::take(reported);
            }
            SlotPages { guest_addr: slot.ram.guest_addr, size: slot.ram.size, words }
        };
        DirtyPages { slots: self.slots.iter_mut().map(take).collect(), page_size: self.page_size }
    }

    /// The slot that has the page at `guest_addr`, and which of its pages that is.
    fn find(&mut self, guest_addr: u64) -> Result<(&mut Slot, usize), DirtyLogError> {
        self.follow();
        let page_size = self.page_size;
        if !guest_addr.is_multiple_of(page_size) {
            return Err(DirtyLogError::Misaligned { addr: guest_addr, page_size });
        }
        let above = self.slots.partition_point(|slot| slot.ram.guest_addr <= guest_addr);
        let slot = above.checked_sub(1).and_then(|at| self.slots.get_mut(at));
        let slot = slot.ok_or(DirtyLogError::NotRam { addr: guest_addr })?;
        let offset = guest_addr - slot.ram.guest_addr;
        if offset >= slot.ram.size {
            return Err(DirtyLogError::NotRam { addr: guest_addr });
        }
        Ok((slot, (offset / page_size) as usize))
    }

    /// Takes notice of slots that were added or removed.
    fn follow(&mut self) {
        if self.published.is_newest(self.generation) {
            return;
        }
        let (slots, generation) = self.published.slots();
        self.generation = generation;
        let mut before = std::mem::take(&mut self.slots);
        for ram in slots.iter() {
            let known = before.iter().position(|slot| slot.ram.id == ram.id).map(|at| before.swap_remove(at));
            self.slots.push(known.unwrap_or_else(|| {
                // Whatever was written before it was tracked is in the first take.
                let mut slot = Slot::new(ram.clone());
                for page in (0..ram.dirty().pages()).step_by(BITS) {
                    slot.merge(page, u64::MAX);
                }
                slot
            }));
        }
        before.iter().for_each(|gone| gone.ram.dirty().stop());
    }
}

impl Drop for DirtyLog {
    fn drop(&mut self) {
        self.slots.iter().for_each(|slot| slot.ram.dirty().stop());
        self.published.end_log();
    }
}

/// Somebody writes guest memory where no [`DirtyLog`] sees it, such as the host's kernel for a vhost device. While it
/// exists, no log can be started, and no slot of RAM added or removed: whoever writes has a table of them.
///
/// ```
/// use ossature_memory::{Backing, DirtyLog, DirtyLogError, Ram, RamConfig, RamError, UnloggedWrites};
///
/// let ram = Ram::new(&RamConfig::new(1 << 20))?;
/// let writes = UnloggedWrites::begin(&ram.dma())?;
/// assert_eq!(DirtyLog::start(&ram).unwrap_err(), DirtyLogError::Unlogged);
/// assert!(matches!(ram.add_slot(4 << 30, 1 << 20, &Backing::Anonymous), Err(RamError::InUse)));
/// drop(writes);
/// let log = DirtyLog::start(&ram)?;
/// assert_eq!(UnloggedWrites::begin(&ram.dma()).unwrap_err(), DirtyLogError::Running);
/// # drop(log);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
#[must_use = "logs can be started again when this is dropped"]
pub struct UnloggedWrites(Arc<Published>);

impl UnloggedWrites {
    /// Says that the memory that `dma` shows is going to be written. Fails while a log exists, which would miss it.
    pub fn begin(dma: &Dma) -> Result<Self, DirtyLogError> {
        let published = dma.published();
        published.begin_unlogged()?;
        Ok(Self(published.clone()))
    }
}

impl Drop for UnloggedWrites {
    fn drop(&mut self) {
        self.0.end_unlogged();
    }
}

/// Pages that were dirty when they were taken.
#[derive(Clone, Debug)]
pub struct DirtyPages {
    slots: Vec<SlotPages>,
    page_size: u64,
}

#[derive(Clone, Debug)]
struct SlotPages {
    guest_addr: u64,
    size: u64,
    words: Vec<u64>,
}

impl SlotPages {
    /// The first page from `from` on that is dirty, or is not.
    fn next(&self, from: usize, dirty: bool) -> Option<usize> {
        let flip = if dirty { 0 } else { u64::MAX };
        let mut mask = u64::MAX << (from % BITS);
        for (index, word) in self.words.iter().enumerate().skip(from / BITS) {
            let found = (word ^ flip) & mask;
            if found != 0 {
                return Some(index * BITS + found.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    fn ranges(&self, page_size: u64) -> impl Iterator<Item = Range<u64>> + use<'_> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next(from, true)?;
            let end = self.next(first, false).unwrap_or(self.words.len() * BITS);
            from = end;
            let offset = |page: usize| (page as u64).saturating_mul(page_size).min(self.size);
            Some(self.guest_addr + offset(first)..self.guest_addr + offset(end))
        })
    }
}

impl DirtyPages {
    /// The guest-physical addresses, ascending, each range as long as it can be within a slot.
    pub fn ranges(&self) -> impl Iterator<Item = Range<u64>> + use<'_> {
        self.slots.iter().flat_map(|slot| slot.ranges(self.page_size))
    }

    /// How many pages.
    pub fn count(&self) -> u64 {
        self.slots.iter().flat_map(|slot| &slot.words).map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns true if no page is dirty.
    pub fn is_empty(&self) -> bool {
        self.count() == 0
    }
}

#[cfg(test)]
mod tests;
