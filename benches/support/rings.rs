//! Queues in memory whose driver has offered everything already: offering the next batch is one index store.

#[path = "../floors/blk_ring.rs"]
mod floor;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ossature::block::{Disk, NullDisk};
use ossature::bus::{Event, Syscall};
use ossature::memory::vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};
use ossature::memory::{Dma, DmaIoError, Ram, RamConfig, Segment, Segments, Window};
use ossature::virtio::blk::Blk;
use ossature::virtio::features::{EVENT_IDX, INDIRECT_DESC};
use ossature::virtio::net::{HEADER_LEN, Net, NetIo, Offloads, Unsent};
use ossature::virtio::testing::{Desc, GuestRing};
use ossature::virtio::{
    Activation, LocalDevice, QueueSetup, QueueState, Removed, Runtime, SharedLoop, Turn, VirtQueue, Worker,
    WorkerHandle,
};

const SIZE: u16 = 256;
const RINGS: u64 = 0x1_0000;
const RING_ROOM: u64 = 0x8000;
const TABLES: u64 = 0x8_0000;
const BUFFERS: u64 = 0x10_0000;
/// Of each buffer; no two share a page.
const BUFFER_ROOM: u64 = 0x1000;

/// Requests in a batch.
pub const BATCH: u16 = 32;

/// How a chain's descriptors lie.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    Direct,
    Indirect,
}

/// The driver's side of one ring: a batch of chains, offered again and again.
pub struct Driver {
    pub ring: GuestRing,
    avail: Window,
    used: Window,
    next: u16,
    chains: u16,
}

impl Driver {
    /// `chains` (a power of two) of the descriptors that `describe` makes from the chain's number and a place for
    /// each buffer.
    pub fn new(
        dma: &Dma,
        queue: u64,
        chains: u16,
        layout: Layout,
        describe: impl Fn(u64, &dyn Fn(u64, u32) -> Segment) -> Vec<Desc>,
    ) -> Self {
        let ring = GuestRing::new(dma.clone(), RINGS + queue * RING_ROOM, SIZE, 0);
        let mut heads = Vec::new();
        let mut free = 0;
        for chain in 0..u64::from(chains) {
            let place = |buffer: u64, len| Segment {
                addr: GuestAddress(BUFFERS + (queue << 20) + (chain * 16 + buffer) * BUFFER_ROOM % 0x10_0000),
                len,
            };
            let descs = describe(chain, &place);
            heads.push(free);
            match layout {
                Layout::Direct => {
                    for desc in Desc::link(&descs, free) {
                        ring.set_desc(free, desc);
                        free += 1;
                    }
                }
                Layout::Indirect => {
                    let table = TABLES + (queue * 64 + chain) * 0x200;
                    for (at, desc) in (0..).zip(Desc::link(&descs, 0)) {
                        ring.set_desc_at(table + 16 * at, desc);
                    }
                    let len = 16 * descs.len() as u32;
                    ring.set_desc(free, Desc { addr: table, len, flags: Desc::INDIRECT, next: 0 });
                    free += 1;
                }
            }
        }
        let window = |addr, len| dma.window(GuestAddress(addr), len).unwrap();
        let avail = window(ring.avail, 6 + 2 * u64::from(SIZE));
        let used = window(ring.used, 6 + 8 * u64::from(SIZE));
        for slot in 0..usize::from(SIZE) {
            avail.store(4 + 2 * slot, heads[slot % heads.len()], Ordering::Relaxed).unwrap();
        }
        Self { ring, avail, used, next: 0, chains }
    }

    /// Offers all chains once more, and asks for one interrupt when they are done.
    #[inline]
    pub fn offer(&mut self) {
        self.next = self.next.wrapping_add(self.chains);
        let event = 4 + 2 * usize::from(SIZE);
        self.avail.store(event, self.next.wrapping_sub(1), Ordering::Relaxed).unwrap();
        self.avail.store(2, self.next, Ordering::Release).unwrap();
    }

    /// Offers what came back once more.
    #[inline]
    pub fn refill(&mut self) {
        let used: u16 = self.used.load(2, Ordering::Acquire).unwrap();
        self.next = used.wrapping_add(self.chains);
        self.avail.store(2, self.next, Ordering::Release).unwrap();
    }

    /// All that was offered came back.
    #[inline]
    pub fn check(&self) {
        assert_eq!(self.used.load::<u16>(2, Ordering::Acquire).unwrap(), self.next);
    }

    /// The device's side.
    pub fn queue(&self, index: u16, dma: &Dma, doorbell: &Arc<Event>, irq: &Arc<Event>) -> VirtQueue {
        let GuestRing { size, desc, avail, used, .. } = self.ring;
        let state = QueueState::new(size).at(desc, avail, used);
        let setup = QueueSetup::new(index, state, dma.clone(), doorbell.clone(), irq.clone().into());
        setup.with_features(EVENT_IDX | INDIRECT_DESC).build().unwrap()
    }
}

fn event() -> Arc<Event> {
    Arc::new(Event::new().unwrap())
}

pub fn ram() -> Ram {
    Ram::new(&RamConfig::new(8 << 20)).unwrap()
}

/// A queue alone.
pub struct QueueRig {
    pub dma: Dma,
    pub driver: Driver,
    pub queue: VirtQueue,
}

impl QueueRig {
    /// Chains of `descriptors`, the last of which is writable.
    pub fn new(descriptors: u64, layout: Layout) -> Self {
        let dma = ram().dma();
        let chains = if descriptors > 8 { 8 } else { BATCH };
        let driver = Driver::new(&dma, 0, chains, layout, |_, place| {
            let mut descs: Vec<_> = (0..descriptors).map(|at| Desc::readable(place(at, 64))).collect();
            *descs.last_mut().unwrap() = Desc::writable(place(descriptors - 1, 64));
            descs
        });
        let queue = driver.queue(0, &dma, &event(), &event());
        Self { dma, driver, queue }
    }

    pub fn chains(&self) -> u16 {
        self.driver.chains
    }

    /// One batch through the queue.
    #[inline]
    pub fn batch(&mut self) -> u64 {
        self.driver.offer();
        let mut bytes = 0;
        while let Some(chain) = self.queue.pop().unwrap() {
            bytes += u64::from(chain.readable_len());
            self.queue.complete(chain, 64).unwrap();
        }
        self.queue.flush().unwrap();
        assert!(!self.queue.enable_kicks().unwrap());
        bytes
    }
}

/// A device's worker between its queues and a back end that does nothing.
pub struct DeviceRig {
    pub dma: Dma,
    pub drivers: Vec<Driver>,
    /// The doorbell of all queues, and their interrupt.
    doorbell: Arc<Event>,
    irq: Arc<Event>,
    worker: Box<dyn Worker>,
}

impl DeviceRig {
    pub fn new(device: &mut dyn LocalDevice, dma: Dma, drivers: Vec<Driver>) -> Self {
        let (doorbell, irq) = (event(), event());
        let activation = Activation::new(device.info().features, dma.clone());
        let mut worker = device.worker(0, &activation).unwrap();
        for (index, driver) in (0..).zip(&drivers) {
            worker.add_queue(driver.queue(index, &dma, &doorbell, &irq));
        }
        Self { dma, drivers, doorbell, irq, worker }
    }

    /// Reads of 4 KiB from a disk without contents.
    pub fn blk(layout: Layout) -> Self {
        Self::blk_on(NullDisk::new(1 << 16), layout)
    }

    /// Reads of 4 KiB from the first 128 KiB of a disk.
    pub fn blk_on(disk: impl Disk, layout: Layout) -> Self {
        let dma = ram().dma();
        let driver = Driver::new(&dma, 0, BATCH, layout, |chain, place| {
            let header = place(0, 16);
            let mut bytes = [0; 16];
            bytes[8..].copy_from_slice(&(chain * 8).to_le_bytes());
            dma.write(header.addr, &bytes).unwrap();
            vec![Desc::readable(header), Desc::writable(place(1, 4096)), Desc::writable(place(2, 1))]
        });
        Self::new(&mut Blk::new(disk, "bench".parse().unwrap()), dma, vec![driver])
    }

    /// Packets of 1514 bytes to a network that takes everything, and from one that never ends.
    pub fn net() -> Self {
        let dma = ram().dma();
        let header = HEADER_LEN as u32;
        let receive = Driver::new(&dma, 0, BATCH, Layout::Direct, |_, place| {
            vec![Desc::writable(place(0, header + 1514))]
        });
        let send = Driver::new(&dma, 1, BATCH, Layout::Direct, |_, place| {
            vec![Desc::readable(place(0, header)), Desc::readable(place(1, 1514))]
        });
        let io = NullNet(UnixStream::pair().unwrap().0);
        Self::new(&mut Net::new(io, "02:00:00:00:00:01".parse().unwrap()), dma, vec![receive, send])
    }

    /// One turn of the worker's.
    #[inline]
    pub fn turn(&mut self, token: u16) -> Turn {
        self.worker.turn(token).unwrap()
    }

    /// One batch through the queue with this number. The kick's token is the queue's number.
    #[inline]
    pub fn batch(&mut self, queue: usize) {
        self.drivers[queue].offer();
        assert_eq!(self.worker.turn(queue as u16).unwrap(), Turn::Sleep);
        self.drivers[queue].check();
    }
}

/// A block device on a thread of its own, which a doorbell wakes and whose interrupt a driver waits for: as with a
/// guest, but for KVM.
pub struct ThreadRig {
    _dma: Dma,
    driver: Driver,
    doorbell: Arc<Event>,
    irq: Arc<Event>,
    _worker: Box<dyn WorkerHandle>,
}

impl ThreadRig {
    /// Reads, as [`DeviceRig::blk_on`] has them, on a thread of this name.
    pub fn blk_on(disk: impl Disk, thread: &str) -> Self {
        let rig = DeviceRig::blk_on(disk, Layout::Indirect);
        let DeviceRig { dma, mut drivers, doorbell, irq, mut worker } = rig;
        // The loop watches the doorbells of the queues that come to the worker through it.
        let Removed::Queue(queue) = worker.remove_queue(0) else { panic!("the worker has its queue") };
        let runtime = SharedLoop::new(thread).unwrap();
        let worker = runtime.spawn("blk", worker, Box::new(|why| panic!("{why:?}"))).unwrap();
        worker.add_queue(queue).unwrap();
        Self { _dma: dma, driver: drivers.remove(0), doorbell, irq, _worker: worker }
    }

    /// Offers a batch, kicks, and polls for the interrupt.
    pub fn batch(&mut self) {
        self.driver.offer();
        self.doorbell.signal().unwrap();
        while self.irq.take().unwrap() == 0 {
            std::thread::yield_now();
        }
        self.driver.check();
    }
}

/// The floor's block device on the same ring.
pub struct FloorRig {
    ring: floor::BlkRing,
    /// With the RAM, the driver, and the interrupt.
    rig: DeviceRig,
}

impl FloorRig {
    /// Direct chains, as [`DeviceRig::blk`] has them.
    pub fn new() -> Self {
        let rig = DeviceRig::blk(Layout::Direct);
        let mem = rig.dma.memory();
        let GuestRing { desc, avail, used, size, .. } = rig.drivers[0].ring;
        mem.write_obj(0u16, GuestAddress(avail)).unwrap();
        let ring = floor::BlkRing {
            ram: mem.get_host_address(GuestAddress(0)).unwrap(),
            ram_len: mem.last_addr().0 + 1,
            desc: desc as usize,
            avail: avail as usize,
            used: used as usize,
            size,
            capacity: 1 << 16,
            interrupt: rig.irq.as_raw_fd(),
            next: 0,
            published: 0,
        };
        Self { ring, rig }
    }

    /// One batch.
    #[inline]
    pub fn batch(&mut self) {
        self.rig.drivers[0].offer();
        assert_eq!(self.ring.serve(), BATCH);
        self.rig.drivers[0].check();
    }
}

/// With a descriptor that nothing happens on.
struct NullNet(UnixStream);

impl NetIo for NullNet {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    fn offloads(&self) -> Offloads {
        Offloads::all()
    }

    fn set_offloads(&self, _: Offloads) -> std::io::Result<()> {
        Ok(())
    }

    fn set_active(&self, _: bool) -> std::io::Result<()> {
        Ok(())
    }

    fn is_connected(&self) -> bool {
        true
    }

    fn flush(&self) -> Result<(), Unsent> {
        Ok(())
    }

    fn receive(&self, _: &Dma, _: Segments<'_>) -> Result<usize, DmaIoError> {
        Ok(HEADER_LEN + 1514)
    }

    fn send(&self, _: &Dma, _: &[u8; HEADER_LEN], _: Segments<'_>) -> Result<(), DmaIoError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
}
