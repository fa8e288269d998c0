//! A driver that knows a device only through its transport: registers, doorbells, interrupts, guest RAM.

pub(super) mod io;
mod registers;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ossature_bus::{Device, DeviceError, DeviceEvent, DeviceState, Event, Handover, Mmio};
use ossature_memory::Dma;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::machine::Machine;
use super::mode::{Life, Transport, life, transport};
use super::port::Port;
use super::port::pci::Vectors;
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
        Self::with_vectors(device, runtime, Vectors::default())
    }

    /// As [`with_runtime`](Self::with_runtime); on PCI, with an own choice of vectors.
    pub(crate) fn with_vectors(
        device: Box<dyn LocalDevice>,
        runtime: Arc<dyn Runtime>,
        vectors: Vectors,
    ) -> Self {
        let dma = guest_ram(&RAM);
        let machine = Machine::new(transport(), vectors, &dma);
        let device = machine.wrap(device, runtime.clone());
        let mut driver = Self::in_machine(machine, device, dma);
        driver.runtime = Some(runtime);
        driver
    }

    /// As [`new`](Self::new), for a device behind the MMIO transport with this kind of interrupt.
    pub fn with_interrupt(device: impl LocalDevice + 'static, interrupt: MmioInterrupt) -> Self {
        Self::with_interrupt_boxed(Box::new(device), interrupt)
    }

    /// As [`boxed`](Self::boxed), for a device behind the MMIO transport with this kind of interrupt.
    pub fn with_interrupt_boxed(device: Box<dyn LocalDevice>, interrupt: MmioInterrupt) -> Self {
        let inline = Inline::new().expect("an event loop");
        let runtime: Arc<dyn Runtime> = Arc::new(inline.clone());
        let device = VirtioMmio::new("test", device, runtime.clone()).with_interrupt(interrupt);
        let mut driver = Self::attach(Box::new(device));
        (driver.inline, driver.runtime) = (Some(inline), Some(runtime));
        driver
    }

    /// Gives `device`, which has one virtio-mmio transport, what it requires, and has it go on.
    pub fn attach(device: Box<dyn Device>) -> Self {
        let dma = guest_ram(&RAM);
        Self::in_machine(Machine::new(Transport::Mmio, Vectors::default(), &dma), device, dma)
    }

    fn in_machine(mut machine: Machine, mut device: Box<dyn Device>, dma: Dma) -> Self {
        machine.attach(&mut *device);
        device.resume().expect("the device goes on");
        machine.find(&*device);
        let mut driver = Self {
            device,
            machine,
            dma,
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
        self.try_reset_machine().expect("the device resets");
    }

    /// The same with a device that may fail to.
    pub(crate) fn try_reset_machine(&mut self) -> Result<(), DeviceError> {
        let reset = self.device.reset();
        self.machine.find_again(&*self.device);
        self.queues.clear();
        self.features = 0;
        reset
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
            self.machine.settle();
        }
        self.device.resume().expect("the device goes on");
        self.machine.assert_configured();
    }

    /// Goes on with `device`, which is restored from what this one saves, on the same RAM and the same runtime. Returns
    /// false, and goes on as before, if it cannot be saved.
    pub fn move_to(&mut self, device: Box<dyn LocalDevice>) -> bool {
        let runtime = self.runtime.clone().expect("a driver that knows its runtime");
        let machine = self.machine.another(&self.dma);
        let device = machine.wrap(device, runtime);
        self.move_to_machine(machine, device, false)
    }

    /// As [`move_to`](Self::move_to), to a device that becomes a clone of this one.
    pub fn clone_to(&mut self, device: Box<dyn LocalDevice>) -> bool {
        let runtime = self.runtime.clone().expect("a driver that knows its runtime");
        let machine = self.machine.another(&self.dma);
        let device = machine.wrap(device, runtime);
        self.move_to_machine(machine, device, true)
    }

    /// As [`move_to`](Self::move_to), for a device of a machine, which has one virtio-mmio transport.
    pub fn move_to_device(&mut self, device: Box<dyn Device>) -> bool {
        self.move_to_machine(Machine::new(Transport::Mmio, Vectors::default(), &self.dma), device, false)
    }

    fn move_to_machine(&mut self, mut machine: Machine, mut device: Box<dyn Device>, clone: bool) -> bool {
        let Some(mut handover) = self.save() else {
            self.device.resume().expect("the device goes on");
            return false;
        };
        self.device.detach().expect("the device leaves");
        machine.attach(&mut *device);
        handover.to_clone = clone;
        device.restore(handover).expect("the other device restores what this one saved");
        machine.settle();
        device.resume().expect("the device goes on");
        self.device = device;
        let old = std::mem::replace(&mut self.machine, machine);
        self.machine.find_restored(&*self.device, old);
        true
    }

    /// Takes the device out of its machine, and plugs it in again: into another machine on the MMIO transport, into the
    /// same while it runs on the PCI one.
    pub fn attach_again(&mut self) {
        self.machine.replug(&mut *self.device, &self.dma);
        self.queues.clear();
    }

    /// Removes the device from its PCI bus without asking the guest.
    pub(crate) fn remove_by_surprise(&mut self) {
        self.machine.remove_by_surprise(&mut *self.device);
        self.queues.clear();
    }

    /// Has the guest eject what was [removed](Self::remove_by_surprise), and plugs the device in again.
    pub(crate) fn plug_in_after_ejection(&mut self) {
        self.machine.plug_in_after_ejection(&mut *self.device);
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
        self.machine.reports()
    }

    /// Lets the device's workers run until they sleep. Those on other threads run anyway.
    pub fn pump(&self) {
        if let Some(inline) = &self.inline {
            inline.pump().expect("the event loop");
        }
    }
}
