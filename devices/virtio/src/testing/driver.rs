//! A driver that knows a device only through its MMIO transport: registers, doorbells, interrupt, guest RAM.

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};

use ossature_bus::{Access, Assigned, Device, DeviceEvent, Event, EventSink, Mmio, Size};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, RegisterPage, Segment};
use virtio_bindings::bindings::virtio_mmio as reg;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{Desc, GuestRing, Used, guest_ram};
use crate::transport::features::{EVENT_IDX, VERSION_1};
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use crate::{Inline, Runtime, VirtioDevice, VirtioMmio};

/// Guest RAM: 64 MiB from 0, and 1 MiB at 4 GiB.
const RAM: [(u64, usize); 2] = [(0, 64 << 20), (4 << 30, 1 << 20)];
/// Where the rings lie, 1 MiB for each.
const RINGS: u64 = 1 << 20;
/// Where buffers lie; they are handed out round and round.
const BUFFERS: std::ops::Range<u64> = 32 << 20..64 << 20;
/// How long a test waits for a device on another thread before it fails, in milliseconds.
const PATIENCE: i32 = 60_000;

/// A chain that [`TestDriver::request`] has offered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its head.
    pub head: u16,
    /// Where the device may write.
    pub writable: Vec<Segment>,
}

struct Queue {
    ring: GuestRing,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    kicked_at: u16,
}

/// A guest's driver, for any virtio device behind an MMIO transport.
pub struct TestDriver {
    device: Box<dyn Device>,
    port: Arc<dyn Mmio>,
    dma: Dma,
    interrupt: Arc<Event>,
    doorbells: Vec<Arc<Event>>,
    page: Arc<RegisterPage>,
    reports: Arc<Mutex<Vec<DeviceEvent>>>,
    inline: Option<Inline>,
    queues: HashMap<u16, Queue>,
    features: u64,
    next_buffer: u64,
}

impl TestDriver {
    /// A driver for `device`, whose workers run when the driver says [`pump`](Self::pump).
    pub fn new(device: impl VirtioDevice + 'static) -> Self {
        Self::boxed(Box::new(device))
    }

    /// As [`new`](Self::new).
    pub fn boxed(device: Box<dyn VirtioDevice>) -> Self {
        let inline = Inline::new().expect("an event loop");
        let mut driver = Self::with_runtime(device, Arc::new(inline.clone()));
        driver.inline = Some(inline);
        driver
    }

    /// A driver for `device`, whose workers run on `runtime`.
    pub fn with_runtime(device: Box<dyn VirtioDevice>, runtime: Arc<dyn Runtime>) -> Self {
        Self::attach(Box::new(VirtioMmio::new("test", device, runtime)))
    }

    /// Gives `device`, which has one virtio-mmio transport, what it requires.
    pub fn attach(mut device: Box<dyn Device>) -> Self {
        let requires = device.requires();
        let events = |n| (0..n).map(|_| Arc::new(Event::new().expect("an event"))).collect::<Vec<_>>();
        let (dma, page) = (guest_ram(&RAM), Arc::new(RegisterPage::new().expect("a page")));
        let (interrupts, doorbells) = (events(requires.interrupts.len()), events(requires.doorbells.len()));
        let reports: Arc<Mutex<Vec<_>>> = Arc::default();
        let sink = reports.clone();
        let assigned = Assigned {
            dma: dma.clone(),
            interrupts: interrupts.clone(),
            doorbells: doorbells.clone(),
            pages: vec![page.clone()],
            events: EventSink::new(move |event| sink.lock().unwrap().push(event)),
        };
        let attached = device.attach(assigned).expect("the device attaches");
        Self {
            device,
            port: attached.ports[0].clone(),
            dma,
            interrupt: interrupts[0].clone(),
            doorbells,
            page,
            reports,
            inline: None,
            queues: HashMap::new(),
            features: 0,
            next_buffer: BUFFERS.start,
        }
    }

    /// The device, as its machine sees it.
    pub fn device(&mut self) -> &mut dyn Device {
        &mut *self.device
    }

    /// The registers, to share with another thread.
    pub fn port(&self) -> Arc<dyn Mmio> {
        self.port.clone()
    }

    /// Guest RAM.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    /// What the device has reported to its VMM so far.
    pub fn reports(&self) -> Vec<DeviceEvent> {
        self.reports.lock().unwrap().clone()
    }

    /// Lets the device's workers run until they sleep. Those on other threads run anyway.
    pub fn pump(&self) {
        if let Some(inline) = &self.inline {
            inline.pump().expect("the event loop");
        }
    }

    /// Reads a 32-bit register. What a guest would see without an exit is the same.
    pub fn read(&self, register: u32) -> u32 {
        let at = Access { offset: register.into(), size: Size::B4 };
        let value = self.port.read(at).expect("a readable register") as u32;
        assert_eq!(self.page.load(register as usize), value, "the register page at {register:#x}");
        value
    }

    /// Writes a 32-bit register.
    pub fn write(&self, register: u32, value: u32) {
        let at = Access { offset: register.into(), size: Size::B4 };
        let _ = self.port.write(at, value.into()).expect("a writable register");
    }

    /// Reads `N` bytes of configuration space, one by one.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        std::array::from_fn(|i| {
            let at =
                Access { offset: u64::from(reg::VIRTIO_MMIO_CONFIG) + offset + i as u64, size: Size::B1 };
            self.port.read(at).expect("configuration space") as u8
        })
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.read(reg::VIRTIO_MMIO_STATUS) as u8
    }

    /// Writes the device status with `bits` added to what it reads, as drivers do.
    pub fn add_status(&self, bits: u8) {
        self.write(reg::VIRTIO_MMIO_STATUS, (self.status() | bits).into());
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.write(reg::VIRTIO_MMIO_STATUS, 0);
        self.queues.clear();
        self.features = 0;
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u64 {
        let window = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u64::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES))
        };
        window(0) | window(1) << 32
    }

    /// Accepts exactly `features`; whether the device agreed.
    pub fn accept(&mut self, features: u64) -> bool {
        for (select, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, bits);
        }
        self.add_status(FEATURES_OK);
        self.features = features;
        self.status() & FEATURES_OK != 0
    }

    /// The largest size of a queue; 0 where there is none.
    pub fn queue_max(&self, queue: u16) -> u32 {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        self.read(reg::VIRTIO_MMIO_QUEUE_NUM_MAX)
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        (0..u16::MAX).find(|&queue| self.queue_max(queue) == 0).expect("an end of queues")
    }

    /// Makes a ring and tells the device about it; whether the device took it.
    pub fn set_up_queue(&mut self, queue: u16, size: u16) -> bool {
        let base = RINGS + (u64::from(queue) << 20);
        let ring = GuestRing::new(self.dma.clone(), base, size, 0);
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        self.write(reg::VIRTIO_MMIO_QUEUE_NUM, size.into());
        for (low, high, addr) in [
            (reg::VIRTIO_MMIO_QUEUE_DESC_LOW, reg::VIRTIO_MMIO_QUEUE_DESC_HIGH, ring.desc),
            (reg::VIRTIO_MMIO_QUEUE_AVAIL_LOW, reg::VIRTIO_MMIO_QUEUE_AVAIL_HIGH, ring.avail),
            (reg::VIRTIO_MMIO_QUEUE_USED_LOW, reg::VIRTIO_MMIO_QUEUE_USED_HIGH, ring.used),
        ] {
            self.write(low, addr as u32);
            self.write(high, (addr >> 32) as u32);
        }
        self.write(reg::VIRTIO_MMIO_QUEUE_READY, 1);
        let free = (0..size).rev().collect();
        self.queues.insert(queue, Queue { ring, free, chains: HashMap::new(), kicked_at: 0 });
        self.read(reg::VIRTIO_MMIO_QUEUE_READY) == 1
    }

    /// Takes the device as far as FEATURES_OK, with those of `wanted` that it offers; what was negotiated.
    pub fn negotiate(&mut self, wanted: u64) -> u64 {
        self.reset();
        assert_eq!(self.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
        assert_eq!(self.read(reg::VIRTIO_MMIO_VERSION), 2);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        let features = self.offered() & (wanted | VERSION_1);
        assert!(self.accept(features), "the device refuses what it offered");
        features
    }

    /// Initializes the device (virtio 1.2, 3.1.1) with those of `wanted` that it offers and all its queues,
    /// each of at most 256 entries; what was negotiated.
    pub fn start(&mut self, wanted: u64) -> u64 {
        let features = self.negotiate(wanted);
        for queue in 0..self.queue_count() {
            let size = self.queue_max(queue).min(256) as u16;
            assert!(self.set_up_queue(queue, size), "queue {queue} is not ready");
        }
        self.add_status(DRIVER_OK);
        features
    }

    /// A queue's ring, to do with as the test wants.
    pub fn ring(&mut self, queue: u16) -> &mut GuestRing {
        &mut self.queues.get_mut(&queue).expect("a queue that was set up").ring
    }

    /// Guest memory for a buffer: valid for as long as the next 32 MiB of buffers are not asked for.
    pub fn buffer(&mut self, len: u32) -> Segment {
        let room = BUFFERS.end - BUFFERS.start;
        assert!(u64::from(len) <= room, "a buffer of {len}");
        if self.next_buffer + u64::from(len) > BUFFERS.end {
            self.next_buffer = BUFFERS.start;
        }
        let addr = GuestAddress(self.next_buffer);
        self.next_buffer = (addr.0 + u64::from(len)).next_multiple_of(16);
        Segment { addr, len }
    }

    /// Guest memory that holds `bytes`.
    pub fn buffer_with(&mut self, bytes: &[u8]) -> Segment {
        let segment = self.buffer(bytes.len() as u32);
        self.dma.write(segment.addr, bytes).expect("buffers are RAM");
        segment
    }

    /// The bytes of `segments`.
    pub fn bytes(&self, segments: &[Segment]) -> Vec<u8> {
        let mut all = Vec::new();
        for segment in segments {
            let start = all.len();
            all.resize(start + segment.len as usize, 0);
            self.dma.read(segment.addr, &mut all[start..]).expect("buffers are RAM");
        }
        all
    }

    /// Offers a chain of `readable` and then of buffers of the lengths `writable`.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Request {
        let readable: Vec<_> = readable.iter().map(|bytes| self.buffer_with(bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|&len| self.buffer(len)).collect();
        let descs =
            readable.iter().map(|&s| Desc::readable(s)).chain(writable.iter().map(|&s| Desc::writable(s)));
        let head = self.offer(queue, &descs.collect::<Vec<_>>());
        Request { head, writable }
    }

    /// As [`request`](Self::request), through an indirect table.
    pub fn request_indirect(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Request {
        let readable: Vec<_> = readable.iter().map(|bytes| self.buffer_with(bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|&len| self.buffer(len)).collect();
        let descs =
            readable.iter().map(|&s| Desc::readable(s)).chain(writable.iter().map(|&s| Desc::writable(s)));
        let descs = Desc::link(&descs.collect::<Vec<_>>(), 0);
        let table = self.buffer(16 * descs.len() as u32);
        for (i, desc) in descs.iter().enumerate() {
            self.ring(queue).set_desc_at(table.addr.0 + 16 * i as u64, *desc);
        }
        let head = self.offer(queue, &[Desc { flags: Desc::INDIRECT, ..Desc::readable(table) }]);
        Request { head, writable }
    }

    /// Offers a chain of `descs`, linked, in free descriptors; its head.
    pub fn offer(&mut self, queue: u16, descs: &[Desc]) -> u16 {
        let state = self.queues.get_mut(&queue).expect("a queue that was set up");
        let rest = state.free.len().checked_sub(descs.len()).expect("free descriptors");
        let taken: Vec<u16> = state.free.drain(rest..).rev().collect();
        for (i, desc) in descs.iter().enumerate() {
            let link = taken.get(i + 1).map_or(*desc, |&next| Desc {
                flags: desc.flags | Desc::NEXT,
                next,
                ..*desc
            });
            state.ring.set_desc(taken[i], link);
        }
        let head = taken[0];
        state.ring.publish(head);
        state.chains.insert(head, taken);
        head
    }

    /// Kicks the queue if the device wants to be: through the doorbell, as the host kernel would. Then pumps.
    pub fn kick(&mut self, queue: u16) {
        let event_idx = self.features & EVENT_IDX != 0;
        let state = self.queues.get_mut(&queue).expect("a queue that was set up");
        let old = std::mem::replace(&mut state.kicked_at, state.ring.avail_index());
        if state.ring.wants_kick(old, event_idx) {
            self.doorbells[usize::from(queue)].signal().expect("an event");
        }
        self.pump();
    }

    /// The queue's doorbell, which the host kernel would signal.
    pub fn doorbell(&self, queue: u16) -> &Event {
        &self.doorbells[usize::from(queue)]
    }

    /// Kicks the queue through the register, wanted or not. Then pumps.
    pub fn kick_register(&self, queue: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        self.pump();
    }

    /// The next chain that the device gave back.
    pub fn used(&mut self, queue: u16) -> Option<Used> {
        let state = self.queues.get_mut(&queue).expect("a queue that was set up");
        let used = state.ring.take_used()?;
        let chain = u16::try_from(used.head).ok().and_then(|head| state.chains.remove(&head));
        state.free.extend(chain.into_iter().flatten());
        Some(used)
    }

    /// Waits for the device to give a chain back, by its interrupt.
    pub fn wait_used(&mut self, queue: u16) -> Used {
        loop {
            // Asks for an interrupt, then looks again: the other order would miss one.
            let next = self.ring(queue).next_used();
            self.ring(queue).set_used_event(next);
            self.pump();
            if let Some(used) = self.used(queue) {
                return used;
            }
            self.wait_interrupt();
        }
    }

    /// Waits for an interrupt and takes it. With workers that run only when they are pumped there is nothing
    /// to wait for: then it must be there.
    pub fn wait_interrupt(&self) {
        let patience = if self.inline.is_some() { 0 } else { PATIENCE };
        let epoll = Epoll::new().expect("epoll");
        let fd = self.interrupt.as_raw_fd();
        epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).expect("epoll");
        let mut ready = [EpollEvent::default()];
        loop {
            match epoll.wait(patience, &mut ready) {
                Ok(0) => panic!("no interrupt"),
                Ok(_) => break,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => panic!("epoll: {e}"),
            }
        }
        self.interrupts();
    }

    /// Takes the interrupts that were raised since the last time: how many.
    pub fn interrupts(&self) -> u64 {
        self.interrupt.take().expect("an event")
    }

    /// Offers a chain, kicks, and waits until it comes back: the used element and what the device wrote.
    pub fn transact(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> (Used, Vec<u8>) {
        let request = self.request(queue, readable, writable);
        self.kick(queue);
        let used = self.wait_used(queue);
        assert_eq!(used.head, u32::from(request.head), "another chain came back");
        let mut bytes = self.bytes(&request.writable);
        bytes.truncate(used.len as usize);
        (used, bytes)
    }
}
