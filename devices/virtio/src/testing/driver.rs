//! A driver that knows a device only through its transport: registers, doorbells, interrupts, guest RAM.

pub(super) mod io;
mod registers;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ossature_bus::{Device, DeviceEvent, DeviceState, Event, Handover, Mmio};
use ossature_memory::Dma;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::machine::Machine;
use super::mode::{Life, life};
use super::port::Port;
use super::{GuestRing, guest_ram};
use crate::{Inline, LocalDevice, MmioInterrupt, Runtime, VirtioMmio};

/// Guest RAM: 64 MiB from 0, and 1 MiB at 4 GiB.
const RAM: [(u64, usize); 2] = [(0, 64 << 20), (4 << 30, 1 << 20)];
/// Where the rings lie, 1 MiB for each.
const RINGS: u64 = 1 << 20;
/// Where buffers lie; they are handed out round and round.
const BUFFERS: std::ops::Range<u64> = 32 << 20..64 << 20;
/// How long a test waits for a device on another thread before it fails, in milliseconds.
const PATIENCE: i32 = 60_000;

struct Queue {
    ring: GuestRing,
    free: Vec<u16>,
    chains: HashMap<u16, Vec<u16>>,
    kicked_at: u16,
}

/// A guest's driver, for any virtio device behind a transport: the MMIO one, unless a test is run
/// [on others](super::on_each_transport) as well.
pub struct TestDriver {
    device: Box<dyn Device>,
    machine: Machine,
    dma: Dma,
    /// What devices before this one reported.
    reports: Vec<DeviceEvent>,
    runtime: Option<Arc<dyn Runtime>>,
    inline: Option<Inline>,
    queues: HashMap<u16, Queue>,
    features: u128,
    next_buffer: u64,
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
        let machine = Machine::new(&mut *device, &dma);
        device.resume().expect("the device goes on");
        let mut driver = Self {
            device,
            machine,
            dma,
            reports: Vec::new(),
            runtime: None,
            inline: None,
            queues: HashMap::new(),
            features: 0,
            next_buffer: BUFFERS.start,
        };
        if life() == Life::Plugged {
            driver.attach_again();
        }
        driver
    }

    /// Resets the device as its machine does, and finds it again.
    pub fn reset_machine(&mut self) {
        self.device.reset().expect("the device resets");
        self.queues.clear();
        self.features = 0;
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
        let machine = Machine::new(&mut *device, &self.dma);
        device.restore(handover).expect("the other device restores what this one saved");
        self.device = device;
        self.enter(machine);
        true
    }

    /// Takes the device out of its machine and puts it into another one.
    pub fn attach_again(&mut self) {
        self.device.detach().expect("the device leaves");
        let machine = Machine::new(&mut *self.device, &self.dma);
        self.queues.clear();
        self.enter(machine);
    }

    /// Goes on in another machine.
    fn enter(&mut self, machine: Machine) {
        self.reports.extend(std::mem::replace(&mut self.machine, machine).board.reports());
        self.device.resume().expect("the device goes on");
    }

    /// The device, as its machine sees it.
    pub fn device(&mut self) -> &mut dyn Device {
        &mut *self.device
    }

    /// Guest RAM.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    /// What the device has reported to its VMM so far.
    pub fn reports(&self) -> Vec<DeviceEvent> {
        self.reports.iter().cloned().chain(self.machine.board.reports()).collect()
    }

    /// Lets the device's workers run until they sleep. Those on other threads run anyway.
    pub fn pump(&self) {
        if let Some(inline) = &self.inline {
            inline.pump().expect("the event loop");
        }
    }
}
