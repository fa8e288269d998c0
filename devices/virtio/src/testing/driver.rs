//! A driver that knows a device only through its MMIO transport: registers, doorbells, interrupt, guest RAM.

pub(super) mod io;

use std::cell::Cell;
use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, Device, DeviceEvent, DeviceState, Event, Handover, Mmio, Size};
use ossature_memory::Dma;
use virtio_bindings::bindings::virtio_mmio as reg;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::{GuestRing, guest_ram};
use crate::features::VERSION_1;
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};
use crate::{Inline, LocalDevice, MmioInterrupt, Runtime, VirtioMmio};

thread_local! {
    /// Drivers of this thread go on with a restored device as soon as they have started it.
    static RESTORED: Cell<bool> = const { Cell::new(false) };
}

/// Has each driver that this thread starts save its device, reset it, and restore it.
pub(crate) fn restore_all() {
    RESTORED.set(true);
}

/// Guest RAM: 64 MiB from 0, and 1 MiB at 4 GiB.
const RAM: [(u64, usize); 2] = [(0, 64 << 20), (4 << 30, 1 << 20)];
/// Where the rings lie, 1 MiB for each.
const RINGS: u64 = 1 << 20;
/// Where buffers lie; they are handed out round and round.
const BUFFERS: std::ops::Range<u64> = 32 << 20..64 << 20;
/// QueueReset, which has no name in Linux' headers.
const QUEUE_RESET: u32 = 0xc0;
/// How long a test waits for a device on another thread before it fails, in milliseconds.
const PATIENCE: i32 = 60_000;

struct Queue {
    ring: GuestRing,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    kicked_at: u16,
}

/// A guest's driver, for any virtio device behind an MMIO transport.
pub struct TestDriver {
    device: Box<dyn Device>,
    board: TestBoard,
    port: Arc<dyn Mmio>,
    dma: Dma,
    /// What devices before this one reported.
    reports: Vec<DeviceEvent>,
    runtime: Option<Arc<dyn Runtime>>,
    inline: Option<Inline>,
    queues: HashMap<u16, Queue>,
    features: u128,
    next_buffer: u64,
}

/// A machine around `device`, with `dma` as its RAM.
fn plug_in(device: &mut dyn Device, dma: &Dma) -> (TestBoard, Arc<dyn Mmio>) {
    let mut board = TestBoard::with_ram(dma.clone());
    board.attach(device).expect("the device attaches");
    let port = board.port("registers").expect("the device answers");
    (board, port)
}

impl TestDriver {
    /// A driver for `device`, whose workers run when the driver says [`pump`](Self::pump).
    pub fn new(device: impl LocalDevice + 'static) -> Self {
        Self::boxed(Box::new(device))
    }

    /// As [`new`](Self::new).
    pub fn boxed(device: Box<dyn LocalDevice>) -> Self {
        let inline = Inline::new().expect("an event loop");
        let mut driver = Self::with_runtime(device, Arc::new(inline.clone()));
        driver.inline = Some(inline);
        driver
    }

    /// A driver for `device`, whose workers run on `runtime`.
    pub fn with_runtime(device: Box<dyn LocalDevice>, runtime: Arc<dyn Runtime>) -> Self {
        let mut driver = Self::attach(Box::new(VirtioMmio::new("test", device, runtime.clone())));
        driver.runtime = Some(runtime);
        driver
    }

    /// As [`new`](Self::new), for a device with this kind of interrupt.
    pub fn with_interrupt(device: impl LocalDevice + 'static, interrupt: MmioInterrupt) -> Self {
        Self::with_interrupt_boxed(Box::new(device), interrupt)
    }

    /// As [`boxed`](Self::boxed), for a device with this kind of interrupt.
    pub fn with_interrupt_boxed(device: Box<dyn LocalDevice>, interrupt: MmioInterrupt) -> Self {
        let inline = Inline::new().expect("an event loop");
        let runtime: Arc<dyn Runtime> = Arc::new(inline.clone());
        let device = VirtioMmio::new("test", device, runtime.clone()).with_interrupt(interrupt);
        let mut driver = Self::attach(Box::new(device));
        (driver.inline, driver.runtime) = (Some(inline), Some(runtime));
        driver
    }

    /// Gives `device`, which has one virtio-mmio transport, what it requires, and has it go on.
    pub fn attach(mut device: Box<dyn Device>) -> Self {
        let dma = guest_ram(&RAM);
        let (board, port) = plug_in(&mut *device, &dma);
        device.resume().expect("the device goes on");
        Self {
            device,
            board,
            port,
            dma,
            reports: Vec::new(),
            runtime: None,
            inline: None,
            queues: HashMap::new(),
            features: 0,
            next_buffer: BUFFERS.start,
        }
    }

    /// Stops the device and takes its state; `None` if it cannot be saved.
    pub fn save(&mut self) -> Option<Handover<'static>> {
        self.device.quiesce().expect("the device stops");
        match self.device.save().expect("the device saves") {
            DeviceState::Saved(handover) => Some(handover),
            _ => None,
        }
    }

    /// Saves the device, resets it, restores it, and has it go on. Only the last where it cannot be saved.
    pub fn save_and_restore(&mut self) {
        if let Some(handover) = self.save() {
            self.device.reset().expect("the device resets");
            self.device.restore(handover).expect("the device restores what it saved");
        }
        self.device.resume().expect("the device goes on");
    }

    /// Goes on with `device`, which is restored from what this one saves, on the same RAM and the same runtime. Returns
    /// false, and goes on as before, if it cannot be saved.
    pub fn move_to(&mut self, device: Box<dyn LocalDevice>) -> bool {
        let runtime = self.runtime.clone().expect("a driver that knows its runtime");
        self.move_to_device(Box::new(VirtioMmio::new("test", device, runtime)))
    }

    /// As [`move_to`](Self::move_to), for a device of a machine.
    pub fn move_to_device(&mut self, mut device: Box<dyn Device>) -> bool {
        let Some(handover) = self.save() else {
            self.device.resume().expect("the device goes on");
            return false;
        };
        self.device.detach().expect("the device leaves");
        let (board, port) = plug_in(&mut *device, &self.dma);
        device.restore(handover).expect("the other device restores what this one saved");
        self.reports.extend(std::mem::replace(&mut self.board, board).reports());
        (self.device, self.port) = (device, port);
        self.device.resume().expect("the device goes on");
        true
    }

    /// Takes the device out of its machine and puts it into another one.
    pub fn attach_again(&mut self) {
        self.device.detach().expect("the device leaves");
        let (board, port) = plug_in(&mut *self.device, &self.dma);
        self.reports.extend(std::mem::replace(&mut self.board, board).reports());
        self.port = port;
        self.queues.clear();
        self.device.resume().expect("the device goes on");
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
        self.reports.iter().cloned().chain(self.board.reports()).collect()
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
        // The interrupt status may change at any time.
        if register != reg::VIRTIO_MMIO_INTERRUPT_STATUS {
            let page = self.board.registers()[0].page().expect("a register page");
            assert_eq!(page.load(register as usize), value, "the register page at {register:#x}");
        }
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
    pub fn offered(&self) -> u128 {
        let window = |select| {
            self.write(reg::VIRTIO_MMIO_DEVICE_FEATURES_SEL, select);
            u128::from(self.read(reg::VIRTIO_MMIO_DEVICE_FEATURES)) << (32 * select)
        };
        (0..4).map(window).sum()
    }

    /// Writes that exactly `features` are accepted.
    pub fn write_features(&self, features: u128) {
        for select in 0..4 {
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES_SEL, select);
            self.write(reg::VIRTIO_MMIO_DRIVER_FEATURES, (features >> (32 * select)) as u32);
        }
    }

    /// Accepts exactly `features`. Returns true if the device agrees.
    pub fn accept(&mut self, features: u128) -> bool {
        self.write_features(features);
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

    /// Makes a ring and tells the device about it. Returns true if the device took it.
    pub fn set_up_queue(&mut self, queue: u16, size: u16) -> bool {
        self.set_up_queue_at(RINGS + (u64::from(queue) << 20), queue, size)
    }

    /// The same at another place.
    pub fn set_up_queue_at(&mut self, base: u64, queue: u16, size: u16) -> bool {
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

    /// Resets a queue alone, and waits until that is done.
    pub fn reset_queue(&mut self, queue: u16) {
        self.write(reg::VIRTIO_MMIO_QUEUE_SEL, queue.into());
        self.write(QUEUE_RESET, 1);
        while self.read(QUEUE_RESET) != 0 {
            std::thread::yield_now();
        }
        assert_eq!(self.read(reg::VIRTIO_MMIO_QUEUE_READY), 0, "a queue that was reset is enabled");
        self.queues.remove(&queue);
    }

    /// Takes the device as far as FEATURES_OK, with those of `wanted` that it offers; what was negotiated.
    pub fn negotiate(&mut self, wanted: u128) -> u128 {
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
    pub fn start(&mut self, wanted: u128) -> u128 {
        let features = self.start_live(wanted);
        if RESTORED.get() {
            self.save_and_restore();
        }
        features
    }

    /// As [`start`](Self::start), for a device that is about to fail, and is not restored in between.
    pub(crate) fn start_live(&mut self, wanted: u128) -> u128 {
        let features = self.negotiate(wanted);
        for queue in 0..self.queue_count() {
            let size = self.queue_max(queue).min(256) as u16;
            assert!(self.set_up_queue(queue, size), "queue {queue} is not ready");
        }
        self.add_status(DRIVER_OK);
        features
    }

    /// The queue's doorbell, which the host kernel would signal.
    pub fn doorbell(&self, queue: u16) -> Arc<Event> {
        self.board.doorbell(("kick", queue)).expect("a doorbell of the queue")
    }

    fn edges(&self) -> Arc<Event> {
        self.board.edges("irq").expect("an interrupt")
    }

    /// Returns true if the interrupt is a level-triggered line, and asserted.
    pub fn is_asserted(&self) -> bool {
        self.board.is_asserted("irq")
    }

    /// Reads the interrupt status and acknowledges what it says.
    pub fn acknowledge(&self) -> u32 {
        let status = self.read(reg::VIRTIO_MMIO_INTERRUPT_STATUS);
        self.write(reg::VIRTIO_MMIO_INTERRUPT_ACK, status);
        status
    }

    /// Kicks the queue through the register, wanted or not. Then pumps.
    pub fn kick_register(&self, queue: u32) {
        self.write(reg::VIRTIO_MMIO_QUEUE_NOTIFY, queue);
        self.pump();
    }

    /// Waits for an interrupt, takes it and acknowledges it. With workers that run only when they are pumped there is nothing
    /// to wait for: then it must be there.
    pub fn wait_interrupt(&self) {
        let patience = if self.inline.is_some() { 0 } else { PATIENCE };
        let epoll = Epoll::new().expect("epoll");
        let edges = self.edges();
        let fd = edges.as_raw_fd();
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
        self.acknowledge();
    }

    /// Takes the interrupts that were raised since the last time: how many.
    pub fn interrupts(&self) -> u64 {
        self.edges().take().expect("an event")
    }
}
