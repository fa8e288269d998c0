//! Floor: the least that serves read requests of a block device from a split ring in memory, without a disk behind
//! it: each field read once, each address checked once, one index store and at most one interrupt a batch.
//!
//! Run alone, it serves 32 requests.
#![allow(dead_code)] // each program that has it as a module uses some of it

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU16, Ordering, fence};

/// A ring, and the RAM that its descriptors refer to.
pub(crate) struct BlkRing {
    pub(crate) ram: *mut u8,
    pub(crate) ram_len: u64,
    /// Offsets in RAM.
    pub(crate) desc: usize,
    pub(crate) avail: usize,
    pub(crate) used: usize,
    /// Entries: a power of two.
    pub(crate) size: u16,
    /// Sectors.
    pub(crate) capacity: u64,
    /// Signalled to interrupt the guest.
    pub(crate) interrupt: RawFd,
    pub(crate) next: u16,
    pub(crate) published: u16,
}

#[derive(Clone, Copy)]
#[repr(C)]
struct Desc {
    addr: u64,
    len: u32,
    flags: u16,
    next: u16,
}

const NEXT: u16 = 1;
const WRITE: u16 = 2;

impl BlkRing {
    fn index(&self, at: usize) -> &AtomicU16 {
        // SAFETY: the rings lie in RAM, aligned; only reached through atomics and volatile accesses.
        unsafe { AtomicU16::from_ptr(self.ram.add(at).cast()) }
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index & (self.size - 1))
    }

    fn desc(&self, index: u16) -> Desc {
        assert!(index < self.size);
        // SAFETY: an entry of the table, which lies in RAM.
        let desc =
            unsafe { self.ram.add(self.desc + 16 * usize::from(index)).cast::<Desc>().read_volatile() };
        assert!(desc.addr < self.ram_len && u64::from(desc.len) <= self.ram_len - desc.addr);
        desc
    }

    /// Serves everything that is available; returns how many requests that were.
    pub(crate) fn serve(&mut self) -> u16 {
        let start = self.next;
        loop {
            let end = self.index(self.avail + 2).load(Ordering::Acquire);
            if end == self.next {
                break;
            }
            while self.next != end {
                let head = self.index(self.avail + 4 + 2 * self.slot(self.next)).load(Ordering::Relaxed);
                let written = self.request(head);
                let element = u64::from(head) | u64::from(written) << 32;
                // SAFETY: an entry of the used ring, which lies in RAM.
                unsafe {
                    let slot = self.ram.add(self.used + 4 + 8 * self.slot(self.next));
                    slot.cast::<[u32; 2]>().write_volatile([element as u32, (element >> 32) as u32]);
                }
                self.next = self.next.wrapping_add(1);
            }
            self.publish();
            self.index(self.used + 4 + 8 * usize::from(self.size)).store(self.next, Ordering::Relaxed);
            fence(Ordering::SeqCst);
        }
        self.next.wrapping_sub(start)
    }

    /// A header to read, data and a status byte to write.
    fn request(&self, head: u16) -> u32 {
        let header = self.desc(head);
        assert!(header.len == 16 && header.flags == NEXT);
        // SAFETY: 16 bytes that were checked to be in RAM.
        let (kind, _, sector) =
            unsafe { self.ram.add(header.addr as usize).cast::<(u32, u32, u64)>().read_volatile() };
        let data = self.desc(header.next);
        assert_eq!(data.flags, NEXT | WRITE);
        let status = self.desc(data.next);
        assert!(status.len == 1 && status.flags == WRITE);
        let sectors = u64::from(data.len / 512);
        let ok = kind == 0 && sector <= self.capacity && sectors <= self.capacity - sector;
        // SAFETY: a byte that was checked to be in RAM.
        unsafe { self.ram.add(status.addr as usize).write_volatile(u8::from(!ok)) };
        data.len + 1
    }

    fn publish(&mut self) {
        self.index(self.used + 2).store(self.next, Ordering::Release);
        fence(Ordering::SeqCst);
        let event = self.index(self.avail + 4 + 2 * usize::from(self.size)).load(Ordering::Relaxed);
        let old = std::mem::replace(&mut self.published, self.next);
        if self.next.wrapping_sub(event).wrapping_sub(1) < self.next.wrapping_sub(old) {
            let one = 1u64;
            // SAFETY: writes eight bytes that are there.
            assert_eq!(unsafe { libc::write(self.interrupt, (&raw const one).cast(), 8) }, 8);
        }
    }
}

fn main() {
    let mut ram = vec![0u64; 0x2000];
    let bytes = ram.as_mut_ptr().cast::<u8>();
    for request in 0..32u16 {
        let (desc, at) = (usize::from(request) * 6, 0x4000 + u64::from(request) * 0x400);
        let flags = |flags: u16, next: u16| u64::from(flags) << 32 | u64::from(next) << 48;
        ram[desc..desc + 6].copy_from_slice(&[
            at,
            16 | flags(NEXT, 3 * request + 1),
            at + 16,
            512 | flags(NEXT | WRITE, 3 * request + 2),
            at + 528,
            1 | flags(WRITE, 0),
        ]);
        // SAFETY: entries of the ring in `ram`.
        unsafe { bytes.add(0x1004 + 2 * usize::from(request)).cast::<u16>().write(3 * request) };
    }
    // SAFETY: the index of the ring, and the event's, in `ram`: no interrupt.
    unsafe {
        bytes.add(0x1002).cast::<u16>().write(32);
        bytes.add(0x1104).cast::<u16>().write(100);
    }
    let (ram_len, capacity) = (0x1_0000, 1 << 20);
    let rings = BlkRing {
        ram: bytes,
        ram_len,
        desc: 0,
        avail: 0x1000,
        used: 0x2000,
        size: 128,
        capacity,
        interrupt: -1,
        next: 0,
        published: 0,
    };
    let mut rings = rings;
    assert_eq!(rings.serve(), 32);
}
