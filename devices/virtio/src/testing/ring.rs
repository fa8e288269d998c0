//! A split ring as a driver sees it, in a device's view of guest RAM.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap, Segment};
use virtio_bindings::bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};

/// RAM for tests: `ranges` of guest-physical addresses and lengths.
pub fn guest_ram(ranges: &[(u64, usize)]) -> Dma {
    let ranges: Vec<_> = ranges.iter().map(|&(addr, len)| (GuestAddress(addr), len)).collect();
    Dma::new(Arc::new(GuestMmap::from_ranges(&ranges).expect("anonymous memory")))
}

/// A descriptor with every field as the test wants it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Desc {
    /// Guest address of the buffer.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// VIRTQ_DESC_F bits.
    pub flags: u16,
    /// Index of the next descriptor.
    pub next: u16,
}

impl Desc {
    /// The flag for one that has a next one.
    pub const NEXT: u16 = VRING_DESC_F_NEXT as u16;
    /// The flag for a buffer that the device writes.
    pub const WRITE: u16 = VRING_DESC_F_WRITE as u16;
    /// The flag for a table of descriptors.
    pub const INDIRECT: u16 = VRING_DESC_F_INDIRECT as u16;

    /// A buffer that the device reads.
    pub fn readable(segment: Segment) -> Self {
        Self { addr: segment.addr.0, len: segment.len, flags: 0, next: 0 }
    }

    /// A buffer that the device writes.
    pub fn writable(segment: Segment) -> Self {
        Self { flags: Self::WRITE, ..Self::readable(segment) }
    }

    /// `descs` linked in their order, as they go into a table from index `first`.
    pub fn link(descs: &[Self], first: u16) -> Vec<Self> {
        let last = descs.len().saturating_sub(1);
        let link = |(i, desc): (usize, &Self)| match i {
            i if i == last => *desc,
            i => Self { flags: desc.flags | Self::NEXT, next: first.wrapping_add(i as u16 + 1), ..*desc },
        };
        descs.iter().enumerate().map(link).collect()
    }

    fn to_bytes(self) -> [u8; 16] {
        let value = u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112;
        value.to_le_bytes()
    }
}

/// A used element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// The head that the device gives back.
    pub head: u32,
    /// Bytes that it says it wrote.
    pub len: u32,
}

/// A split ring in guest memory.
#[derive(Clone, Debug)]
pub struct GuestRing {
    dma: Dma,
    /// Entries.
    pub size: u16,
    /// Address of the descriptor table.
    pub desc: u64,
    /// Address of the available ring.
    pub avail: u64,
    /// Address of the used ring.
    pub used: u64,
    next_avail: u16,
    next_used: u16,
}

impl GuestRing {
    /// Bytes that a ring of `size` takes.
    pub fn len(size: u16) -> u64 {
        16 * u64::from(size) + (6 + 2 * u64::from(size)).next_multiple_of(4) + 6 + 8 * u64::from(size)
    }

    /// A ring of zeros at `base`, both indices at `start`.
    pub fn new(dma: Dma, base: u64, size: u16, start: u16) -> Self {
        let avail = base + 16 * u64::from(size);
        let used = (avail + 6 + 2 * u64::from(size)).next_multiple_of(4);
        dma.write(GuestAddress(base), &vec![0; Self::len(size) as usize]).expect("the ring is in RAM");
        let ring = Self { dma, size, desc: base, avail, used, next_avail: start, next_used: start };
        ring.store(ring.avail + 2, start);
        ring.store(ring.used + 2, start);
        ring
    }

    fn store(&self, addr: u64, value: u16) {
        self.dma.store(GuestAddress(addr), value.to_le(), Ordering::Release).expect("the ring is in RAM");
    }

    fn load(&self, addr: u64) -> u16 {
        u16::from_le(self.dma.load(GuestAddress(addr), Ordering::Acquire).expect("the ring is in RAM"))
    }

    /// Writes a descriptor into the table.
    pub fn set_desc(&self, index: u16, desc: Desc) {
        self.set_desc_at(self.desc + 16 * u64::from(index), desc);
    }

    /// Writes a descriptor to any address: into an indirect table.
    pub fn set_desc_at(&self, addr: u64, desc: Desc) {
        self.dma.write(GuestAddress(addr), &desc.to_bytes()).expect("the descriptor is in RAM");
    }

    /// Puts `head` into the next available entry and moves the index past it.
    pub fn publish(&mut self, head: u16) {
        self.store(self.avail + 4 + 2 * u64::from(self.next_avail % self.size), head);
        self.set_avail_index(self.next_avail.wrapping_add(1));
    }

    /// Writes `descs`, linked, from table index `head`, and publishes the chain.
    pub fn offer(&mut self, head: u16, descs: &[Desc]) {
        for (i, desc) in Desc::link(descs, head).into_iter().enumerate() {
            self.set_desc(head + i as u16, desc);
        }
        self.publish(head);
    }

    /// Writes `descs`, linked, into a table at `table`, and publishes a head that refers to it.
    pub fn offer_indirect(&mut self, head: u16, table: u64, descs: &[Desc]) {
        for (i, desc) in Desc::link(descs, 0).into_iter().enumerate() {
            self.set_desc_at(table + 16 * i as u64, desc);
        }
        self.set_desc(
            head,
            Desc { addr: table, len: 16 * descs.len() as u32, flags: Desc::INDIRECT, next: 0 },
        );
        self.publish(head);
    }

    /// The available index.
    pub fn avail_index(&self) -> u16 {
        self.next_avail
    }

    /// Writes the available index, whatever it is.
    pub fn set_avail_index(&mut self, index: u16) {
        self.next_avail = index;
        self.store(self.avail + 2, index);
    }

    /// Asks for no interrupts (without EVENT_IDX).
    pub fn set_no_interrupt(&self, off: bool) {
        self.store(self.avail, off.into());
    }

    /// Asks for an interrupt once the used index passes `event` (with EVENT_IDX).
    pub fn set_used_event(&self, event: u16) {
        self.store(self.avail + 4 + 2 * u64::from(self.size), event);
        fence(Ordering::SeqCst);
    }

    /// The used index.
    pub fn used_index(&self) -> u16 {
        self.load(self.used + 2)
    }

    /// Returns true if the device asks for no kicks (without EVENT_IDX).
    pub fn no_notify(&self) -> bool {
        self.load(self.used) & 1 != 0
    }

    /// The available index at which the device wants a kick (with EVENT_IDX).
    pub fn avail_event(&self) -> u16 {
        self.load(self.used + 4 + 8 * u64::from(self.size))
    }

    /// Returns true if the device wants a kick for what was published since `old` (2.7.10).
    pub fn wants_kick(&self, old: u16, event_idx: bool) -> bool {
        fence(Ordering::SeqCst);
        if event_idx {
            let passed = self.next_avail.wrapping_sub(self.avail_event()).wrapping_sub(1);
            passed < self.next_avail.wrapping_sub(old)
        } else {
            !self.no_notify()
        }
    }

    /// The used index that the driver has come to.
    pub fn next_used(&self) -> u16 {
        self.next_used
    }

    /// The next chain that the device gave back.
    pub fn take_used(&mut self) -> Option<Used> {
        if self.used_index() == self.next_used {
            return None;
        }
        let mut bytes = [0; 8];
        let addr = self.used + 4 + 8 * u64::from(self.next_used % self.size);
        self.dma.read(GuestAddress(addr), &mut bytes).expect("the ring is in RAM");
        self.next_used = self.next_used.wrapping_add(1);
        let value = u64::from_le_bytes(bytes);
        Some(Used { head: value as u32, len: (value >> 32) as u32 })
    }
}
