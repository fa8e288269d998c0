//! The ring of dirty pages that a vCPU shares with the kernel (`KVM_CAP_DIRTY_LOG_RING_ACQ_REL`).

use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull, addr_of, addr_of_mut};
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_dirty_gfn};
use kvm_ioctls::{VcpuFd, VmFd};
use ossature_memory::host_page_size;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::{errno, ioctl_io_nr};

use super::slots::Slots;

/// The kernel has filled the entry in (`KVM_DIRTY_GFN_F_DIRTY`).
const DIRTY: u32 = 1;
/// It was read: the kernel is to watch the page again (`KVM_DIRTY_GFN_F_RESET`).
const RESET: u32 = 2;

ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// Bytes of an entry.
pub(super) const ENTRY: usize = size_of::<kvm_dirty_gfn>();

/// One vCPU's ring, for as long as this lives.
#[derive(Debug)]
struct Ring {
    entries: NonNull<kvm_dirty_gfn>,
    len: usize,
    /// The next entry that the kernel fills in.
    next: usize,
}

// SAFETY: the mapping belongs to this value, and the kernel's entries are read by whoever has it exclusively.
unsafe impl Send for Ring {}

impl Ring {
    fn new(vcpu: &VcpuFd, len: usize) -> io::Result<Self> {
        let offset = KVM_DIRTY_LOG_PAGE_OFFSET as usize * host_page_size();
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, vcpu.as_raw_fd());
        // SAFETY: a new mapping at an address that the kernel chooses.
        let mapping = unsafe {
            libc::mmap(ptr::null_mut(), len * ENTRY, protection, libc::MAP_SHARED, fd, offset as libc::off_t)
        };
        match NonNull::new(mapping.cast()) {
            Some(entries) if mapping != libc::MAP_FAILED => Ok(Self { entries, len, next: 0 }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    fn entry(&self, at: usize) -> *mut kvm_dirty_gfn {
        // SAFETY: as many entries as `len` are mapped.
        unsafe { self.entries.add(at % self.len).as_ptr() }
    }

    fn flags(&self, at: usize) -> &AtomicU32 {
        // SAFETY: the entry is mapped for as long as `self`, and both sides change its flags atomically.
        unsafe { AtomicU32::from_ptr(addr_of_mut!((*self.entry(at)).flags)) }
    }

    fn is_dirty(&self, at: usize) -> bool {
        self.flags(at).load(Ordering::Acquire) & DIRTY != 0
    }

    /// Gives the entry back to the kernel.
    fn give_back(&mut self) {
        self.flags(self.next).store(RESET, Ordering::Release);
        self.next = (self.next + 1) % self.len;
    }

    /// Visits the pages that the kernel has logged: their slots and their numbers in there. Returns how many.
    fn harvest(&mut self, mut visit: impl FnMut(u32, u64)) -> usize {
        let mut count = 0;
        // The kernel may go on to fill it meanwhile.
        while count < self.len && self.is_dirty(self.next) {
            let entry = self.entry(self.next);
            // SAFETY: the kernel writes the rest of an entry before it sets the flag, and leaves it alone until it has
            // seen ours.
            let (slot, page) = unsafe { (addr_of!((*entry).slot).read(), addr_of!((*entry).offset).read()) };
            visit(slot, page);
            self.give_back();
            count += 1;
        }
        count
    }

    /// Goes on to the first entry that the kernel has filled in, wherever that is, while the vCPU does not run. Returns
    /// false if there is none.
    fn find(&mut self) -> bool {
        let Some(skip) = (0..self.len).find(|n| self.is_dirty(self.next + n)) else { return false };
        (0..skip).for_each(|_| self.give_back());
        true
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nobody uses it any more.
        unsafe { libc::munmap(self.entries.as_ptr().cast(), self.len * ENTRY) };
    }
}

/// The rings of a machine's vCPUs by index, and the pages that were read from them and not taken yet.
#[derive(Debug, Default)]
pub(super) struct Rings {
    rings: BTreeMap<u32, Ring>,
    /// Bitmaps by the guest address of their slot.
    pages: BTreeMap<u64, Vec<u64>>,
}

impl Rings {
    /// Adds the ring of a new vCPU.
    pub(super) fn add(&mut self, index: u32, vcpu: &VcpuFd, len: usize) -> io::Result<()> {
        self.rings.insert(index, Ring::new(vcpu, len)?);
        Ok(())
    }

    /// Empties the rings, and has the kernel watch the pages again that were in there. `full` is a vCPU that has left the
    /// guest because its ring is full.
    pub(super) fn harvest(&mut self, vm: &VmFd, slots: &Slots, full: Option<u32>) -> errno::Result<()> {
        let (mut some, mut lost) = (false, false);
        for (index, ring) in &mut self.rings {
            let mut count = ring.harvest(|slot, page| mark(&mut self.pages, slots, slot, page));
            if count == 0 && full == Some(*index) && ring.find() {
                lost = true;
                count = ring.harvest(|slot, page| mark(&mut self.pages, slots, slot, page));
            }
            some |= count > 0;
            // The kernel leaves in time, but for guests whose instructions it carries out itself.
            lost |= count == ring.len;
        }
        if lost {
            self.mark_all(slots);
        }
        if some {
            // SAFETY: the ioctl takes no argument.
            let reset = unsafe { ioctl(vm, KVM_RESET_DIRTY_RINGS()) };
            if reset < 0 {
                return Err(errno::Error::last());
            }
        }
        Ok(())
    }

    /// Nobody knows which pages were written: all of them may have been.
    fn mark_all(&mut self, slots: &Slots) {
        for (start, pages) in slots.places() {
            let rest = pages % 64;
            let last = (rest != 0).then_some((1 << rest) - 1);
            let words = std::iter::repeat_n(u64::MAX, (pages / 64) as usize).chain(last);
            self.pages.insert(start, words.collect());
        }
    }

    /// Takes the pages that were read from the rings, as bitmaps with the guest address of their first page.
    pub(super) fn take(&mut self) -> BTreeMap<u64, Vec<u64>> {
        std::mem::take(&mut self.pages)
    }
}

/// Marks a page of a slot as dirty.
fn mark(bitmaps: &mut BTreeMap<u64, Vec<u64>>, slots: &Slots, slot: u32, page: u64) {
    // The upper half is the address space: there is one of them, without SMM.
    let Some((start, pages)) = slots.place(slot & 0xffff).filter(|(_, pages)| page < *pages) else { return };
    let bitmap = bitmaps.entry(start).or_default();
    if bitmap.is_empty() {
        bitmap.resize(pages.div_ceil(64) as usize, 0);
    }
    bitmap.get_mut((page / 64) as usize).into_iter().for_each(|word| *word |= 1 << (page % 64));
}
