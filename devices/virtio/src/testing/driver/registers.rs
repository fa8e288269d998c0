//! The driver's part in registers: status, features, queues, configuration space, interrupts.

use std::time::{Duration, Instant};

use super::*;
use crate::features::VERSION_1;
use crate::testing::port::config_byte;
use crate::testing::port::pci::PciPort;
use crate::transport::core::Ring;
use crate::transport::status::{ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK};

impl TestDriver {
    /// Reads a 32-bit register of the MMIO transport. What a guest would see without an exit is the same.
    pub fn read(&self, register: u32) -> u32 {
        self.machine.mmio().read(register)
    }

    /// Writes a 32-bit register of the MMIO transport.
    pub fn write(&self, register: u32, value: u32) {
        self.machine.mmio().write(register, value);
    }

    /// The registers of the MMIO transport, to share with another thread.
    pub fn port(&self) -> Arc<dyn Mmio> {
        self.machine.mmio().registers().clone()
    }

    /// The registers, whatever the transport.
    pub(crate) fn registers(&self) -> &Arc<dyn Port> {
        self.machine.port()
    }

    /// The function of the PCI transport.
    pub(in crate::testing) fn pci(&self) -> &Arc<PciPort> {
        self.machine.pci()
    }

    /// The transport between driver and device.
    pub fn transport(&self) -> Transport {
        self.machine.transport()
    }

    /// Reads `N` bytes of configuration space, one by one.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        std::array::from_fn(|i| config_byte(&**self.registers(), offset + i as u64))
    }

    /// The configuration's generation.
    pub fn generation(&self) -> u32 {
        self.registers().generation()
    }

    /// The device status.
    pub fn status(&self) -> u8 {
        self.registers().status()
    }

    /// Writes the device status.
    pub fn write_status(&self, status: u8) {
        self.registers().set_status(status);
    }

    /// Writes the device status with `bits` added to what it reads, as drivers do.
    pub fn add_status(&self, bits: u8) {
        self.write_status(self.status() | bits);
    }

    /// Resets the device.
    pub fn reset(&mut self) {
        self.write_status(0);
        while self.status() != 0 {
            std::thread::yield_now();
        }
        self.queues.clear();
        self.features = 0;
    }

    /// The features that the device offers.
    pub fn offered(&self) -> u128 {
        let window = |window| u128::from(self.registers().device_features(window)) << (32 * window);
        (0..4).map(window).sum()
    }

    /// Writes that exactly `features` are accepted.
    pub fn write_features(&self, features: u128) {
        for window in 0..4 {
            self.registers().set_driver_features(window, (features >> (32 * window)) as u32);
        }
    }

    /// Accepts exactly `features`. Returns true if the device agrees.
    pub fn accept(&mut self, features: u128) -> bool {
        self.write_features(features);
        self.add_status(FEATURES_OK);
        self.features = features;
        self.status() & FEATURES_OK != 0
    }

    /// The largest size of a queue that was not set up; 0 where there is none.
    pub fn queue_max(&self, queue: u16) -> u32 {
        self.registers().select_queue(queue.into());
        self.registers().queue_max()
    }

    /// How many queues the device has.
    pub fn queue_count(&self) -> u16 {
        self.registers().queue_count()
    }

    /// Returns true if the queue is enabled.
    pub fn is_ready(&self, queue: u16) -> bool {
        self.registers().select_queue(queue.into());
        match self.registers().queue_ready() {
            0 => false,
            1 => true,
            other => panic!("{other} says whether queue {queue} is enabled"),
        }
    }

    /// Enables the queue as its registers say. Returns true if the device took it.
    pub fn enable_queue(&self, queue: u16) -> bool {
        self.registers().select_queue(queue.into());
        self.registers().set_queue_ready(1);
        self.is_ready(queue)
    }

    /// Makes a ring and tells the device about it. Returns true if the device took it.
    pub fn set_up_queue(&mut self, queue: u16, size: u16) -> bool {
        self.set_up_queue_at(RINGS + (u64::from(queue) << 20), queue, size)
    }

    /// The same at another place.
    pub fn set_up_queue_at(&mut self, base: u64, queue: u16, size: u16) -> bool {
        let ring = GuestRing::new(self.dma.clone(), base, size, 0);
        let registers = self.registers();
        registers.select_queue(queue.into());
        registers.set_queue_size(size.into());
        for (part, addr) in [(Ring::Desc, ring.desc), (Ring::Avail, ring.avail), (Ring::Used, ring.used)] {
            registers.set_queue_address(part, addr);
        }
        registers.connect_queue(queue);
        let free = (0..size).rev().collect();
        self.queues.insert(queue, Queue { ring, free, chains: HashMap::new(), kicked_at: 0 });
        self.enable_queue(queue)
    }

    /// Resets a queue alone, and waits until that is done.
    pub fn reset_queue(&mut self, queue: u16) {
        self.registers().select_queue(queue.into());
        self.registers().set_queue_reset(1);
        while self.registers().queue_reset() != 0 {
            std::thread::yield_now();
        }
        assert!(!self.is_ready(queue), "a queue that was reset is enabled");
        self.queues.remove(&queue);
    }

    /// Takes the device as far as FEATURES_OK, with those of `wanted` that it offers; what was negotiated.
    pub fn negotiate(&mut self, wanted: u128) -> u128 {
        self.reset();
        self.machine.identify();
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        let features = self.offered() & (wanted | VERSION_1);
        assert!(self.accept(features), "the device refuses what it offered");
        self.registers().connect_config();
        features
    }

    /// Initializes the device (virtio 1.2, 3.1.1) with those of `wanted` that it offers and all its queues,
    /// each of at most 256 entries; what was negotiated.
    pub fn start(&mut self, wanted: u128) -> u128 {
        let features = self.start_live(wanted);
        if life() == Life::Restored {
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
        self.registers().doorbell(queue)
    }

    /// Kicks the queue through the register, wanted or not. Then pumps.
    pub fn kick_register(&self, queue: u32) {
        self.registers().notify(queue);
        self.pump();
    }

    /// Returns true if the interrupt of the MMIO transport is a level-triggered line, and asserted.
    pub fn is_asserted(&self) -> bool {
        self.machine.mmio();
        self.machine.board().is_asserted("irq")
    }

    /// Reads the interrupt status and acknowledges what it says.
    pub fn acknowledge(&self) -> u32 {
        let status = self.registers().pending();
        self.registers().acknowledge(status);
        status
    }

    /// Waits for an interrupt, takes it and acknowledges it. With workers that run only when they are pumped there is nothing
    /// to wait for: then it must be there.
    pub fn wait_interrupt(&self) {
        let patience = if self.inline.is_some() { 0 } else { PATIENCE };
        if self.registers().events().is_empty() {
            return self.poll_interrupt(Duration::from_millis(patience as u64));
        }
        let epoll = Epoll::new().expect("epoll");
        for event in self.registers().events() {
            let fd = event.as_raw_fd();
            epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(EventSet::IN, 0)).expect("epoll");
        }
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

    /// Looks for what an interrupt would tell.
    fn poll_interrupt(&self, patience: Duration) {
        let begun = Instant::now();
        while self.interrupts() == 0 {
            assert!(begun.elapsed() <= patience, "no interrupt status");
            std::thread::yield_now();
        }
    }

    /// Takes the interrupts that were raised since the last time: how many.
    pub fn interrupts(&self) -> u64 {
        self.registers().take_interrupts()
    }
}
