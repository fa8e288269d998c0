//! What the benches do, with the raw rust-vmm crates: the least that a VMM has to add to them.

use std::hint::black_box;

use ossature::memory::GuestMmap;
use ossature::memory::vm_memory::{Address, Bytes, GuestMemoryBackend};
use virtio_queue::{DescriptorChain, Queue, QueueT};

use super::rings::{DeviceRig, Driver, QueueRig};

/// The raw crate on the driver's ring.
fn queue(driver: &Driver) -> Queue {
    let mut queue = Queue::new(driver.ring.size).unwrap();
    queue.set_size(driver.ring.size);
    let halves = |address: u64| (Some(address as u32), Some((address >> 32) as u32));
    let (low, high) = halves(driver.ring.desc);
    queue.set_desc_table_address(low, high);
    let (low, high) = halves(driver.ring.avail);
    queue.set_avail_ring_address(low, high);
    let (low, high) = halves(driver.ring.used);
    queue.set_used_ring_address(low, high);
    queue.set_event_idx(true);
    queue.set_ready(true);
    queue
}

/// Ends a batch as `flush` and `enable_kicks` do.
fn end(queue: &mut Queue, mem: &GuestMmap) {
    black_box(queue.needs_notification(mem).unwrap());
    assert!(!queue.enable_notification(mem).unwrap());
}

/// What [`QueueRig::batch`] does: every descriptor is looked at, every buffer checked.
pub struct RawQueue {
    rig: QueueRig,
    queue: Queue,
}

impl RawQueue {
    pub fn new(rig: QueueRig) -> Self {
        Self { queue: queue(&rig.driver), rig }
    }

    pub fn batch(&mut self) -> u64 {
        self.rig.driver.offer();
        let mem = self.rig.dma.memory();
        let mut bytes = 0;
        while let Some(chain) = self.queue.pop_descriptor_chain(mem) {
            let head = chain.head_index();
            for desc in chain {
                assert!(mem.check_range(desc.addr(), desc.len() as usize));
                bytes += u64::from(desc.len()) * u64::from(!desc.is_write_only());
            }
            self.queue.add_used(mem, head, 64).unwrap();
        }
        end(&mut self.queue, mem);
        bytes
    }
}

/// Serves a chain; returns the bytes written.
pub type Serve = fn(&GuestMmap, DescriptorChain<&GuestMmap>) -> u32;

/// What [`DeviceRig::batch`] does.
pub struct RawDevice {
    rig: DeviceRig,
    at: usize,
    queue: Queue,
}

impl RawDevice {
    /// In place of the rig's device, on its queue `at`.
    pub fn new(rig: DeviceRig, at: usize) -> Self {
        Self { queue: queue(&rig.drivers[at]), rig, at }
    }

    pub fn batch(&mut self, serve: Serve) {
        self.rig.drivers[self.at].offer();
        let mem = self.rig.dma.memory();
        while let Some(chain) = self.queue.pop_descriptor_chain(mem) {
            let head = chain.head_index();
            let written = serve(mem, chain);
            self.queue.add_used(mem, head, written).unwrap();
        }
        end(&mut self.queue, mem);
        self.rig.drivers[self.at].check();
    }
}

/// A read of a disk without contents.
pub fn read(mem: &GuestMmap, mut chain: DescriptorChain<&GuestMmap>) -> u32 {
    let header = chain.next().unwrap();
    assert!(!header.is_write_only() && header.len() == 16);
    let [kind, sector]: [u64; 2] = mem.read_obj(header.addr()).unwrap();
    let data = chain.next().unwrap();
    let last = sector.checked_add(u64::from(data.len()) / 512).unwrap();
    assert!(kind as u32 == 0 && last <= 1 << 16);
    assert!(data.is_write_only() && mem.check_range(data.addr(), data.len() as usize));
    let status = chain.next().unwrap();
    assert!(status.is_write_only());
    mem.write_obj(0u8, status.addr()).unwrap();
    data.len() + 1
}

/// A packet for a network that takes everything.
pub fn send(mem: &GuestMmap, mut chain: DescriptorChain<&GuestMmap>) -> u32 {
    let header: [u8; 12] = mem.read_obj(chain.next().unwrap().addr()).unwrap();
    black_box(header);
    let frame = chain.next().unwrap();
    assert!(mem.check_range(frame.addr(), frame.len() as usize));
    0
}

/// A packet of a network that has always one.
pub fn receive(mem: &GuestMmap, mut chain: DescriptorChain<&GuestMmap>) -> u32 {
    let buffer = chain.next().unwrap();
    assert!(buffer.is_write_only() && mem.check_range(buffer.addr(), buffer.len() as usize));
    mem.write_obj(1u16, buffer.addr().unchecked_add(10)).unwrap();
    12 + 1514
}
