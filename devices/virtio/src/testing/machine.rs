//! The machine around a device under test, and the registers by which its driver reaches it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::testing::TestBoard;
use ossature_bus::{Device, DeviceEvent, RegisterRange};
use ossature_memory::Dma;
use ossature_pci::{PciBus, PciHost};
use virtio_bindings::bindings::virtio_mmio as reg;

use super::mode::Transport;
use super::port::Port;
use super::port::mmio::MmioPort;
use super::port::pci::guest::{Guest, Hotplug, Slot};
use super::port::pci::{PciPort, Vectors};
use crate::{LocalDevice, Runtime, VirtioMmio, VirtioPci};

/// The device's name in its machine.
const ID: &str = "test";

/// A board with one device that has a virtio transport.
pub(super) struct Machine {
    board: Arc<Mutex<TestBoard>>,
    /// What was reported on boards before this one.
    reports: Vec<DeviceEvent>,
    place: Place,
    /// Those of the device.
    ranges: Vec<RegisterRange>,
    port: Option<Arc<dyn Port>>,
}

/// Where the device is, and how its driver reaches it once it is there.
enum Place {
    Mmio(Option<Arc<MmioPort>>),
    Pci(Box<Bus>),
}

struct Bus {
    bus: PciBus,
    host: PciHost,
    guest: Arc<Guest>,
    vectors: Vectors,
    /// The guest has begun to run.
    running: bool,
    port: Option<Arc<PciPort>>,
}

fn lock(board: &Mutex<TestBoard>) -> MutexGuard<'_, TestBoard> {
    board.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bus {
    fn new(board: &Arc<Mutex<TestBoard>>, vectors: Vectors) -> Self {
        let bus = PciBus::new();
        let mut host = bus.host("pci");
        let mut on = lock(board);
        let assigned = on.assign(&host.requires());
        let windows = ["memory32", "memory64"].map(|name| assigned.window(name).expect("a window").clone());
        host.attach(assigned).expect("the host bridge attaches");
        let [ecam, hotplug] = ["ecam", "hotplug"].map(|name| on.port(name).expect("the host bridge answers"));
        drop(on);
        let guest = Arc::new(Guest::new(board.clone(), ecam, hotplug, windows));
        Self { bus, host, guest, vectors, running: false, port: None }
    }

    /// The guest is interrupted for hotplug.
    fn take_hotplug_interrupt(&self) {
        let edges = self.guest.board().edges("hotplug").expect("an interrupt");
        assert!(edges.take().expect("an event") > 0, "nobody tells the guest to look");
    }

    fn slot(&self, number: u8) -> Slot {
        Slot { guest: self.guest.clone(), number }
    }

    /// The slot of the device, which the guest finds by looking at all of them, or is told of while it runs.
    fn find(&mut self) -> Slot {
        if !self.running {
            self.running = true;
            self.host.resume().expect("the host bridge goes on");
            let slots = self.guest.slots();
            assert_eq!(slots.len(), 1, "one device, one function");
            return slots[0].clone();
        }
        self.take_hotplug_interrupt();
        let up = self.guest.hotplug(Hotplug::Up);
        assert!(up.is_power_of_two(), "one function has come, not {up:#b}");
        assert_eq!(self.guest.hotplug(Hotplug::Up), 0, "it is told once");
        assert_eq!(self.guest.hotplug(Hotplug::Present), up);
        self.slot(up.trailing_zeros() as u8)
    }

    fn port(&self) -> &Arc<PciPort> {
        self.port.as_ref().expect("a device that the driver has found")
    }

    /// The guest is asked to give the device up, and does.
    fn eject(&self) {
        let slot = self.port().slot.number;
        self.bus.request_removal(ID).expect("the guest can be asked");
        self.take_hotplug_interrupt();
        assert_eq!(self.guest.hotplug(Hotplug::Down), 1 << slot);
        self.guest.eject(1 << slot);
        assert_eq!(self.guest.take_removed().len(), 1, "the machine is asked to remove one device");
        assert_eq!((self.guest.slots().len(), self.guest.hotplug(Hotplug::Present)), (0, 0));
    }
}

impl Machine {
    /// A machine without a device, whose transport will be this one.
    pub(super) fn new(transport: Transport, vectors: Vectors, dma: &Dma) -> Self {
        let board = Arc::new(Mutex::new(TestBoard::with_ram(dma.clone())));
        let place = match transport {
            Transport::Mmio => Place::Mmio(None),
            Transport::Pci => Place::Pci(Box::new(Bus::new(&board, vectors))),
        };
        Self { board, reports: Vec::new(), place, ranges: Vec::new(), port: None }
    }

    pub(super) fn transport(&self) -> Transport {
        match &self.place {
            Place::Mmio(_) => Transport::Mmio,
            Place::Pci(_) => Transport::Pci,
        }
    }

    /// Another machine like this one, without a device.
    pub(super) fn another(&self, dma: &Dma) -> Self {
        match &self.place {
            Place::Mmio(_) => Self::new(Transport::Mmio, Vectors::default(), dma),
            Place::Pci(bus) => Self::new(Transport::Pci, bus.vectors, dma),
        }
    }

    /// `device` behind the machine's transport.
    pub(super) fn wrap(&self, device: Box<dyn LocalDevice>, runtime: Arc<dyn Runtime>) -> Box<dyn Device> {
        match &self.place {
            Place::Mmio(_) => Box::new(VirtioMmio::new(ID, device, runtime)),
            Place::Pci(bus) => Box::new(VirtioPci::new(ID, device, runtime, &bus.bus)),
        }
    }

    /// Gives `device` what it requires.
    pub(super) fn attach(&mut self, device: &mut dyn Device) {
        let mut board = self.board();
        let others = board.registers().len();
        board.attach(device).expect("the device attaches");
        let ranges = board.registers()[others..].to_vec();
        drop(board);
        self.ranges = ranges;
    }

    /// Takes `device` out of the machine.
    fn detach(&mut self, device: &mut dyn Device) {
        device.detach().expect("the device leaves");
        for range in self.ranges.drain(..) {
            range.moved(None);
            range.disconnected();
        }
    }

    /// Has the driver find `device`, which was attached and goes on.
    pub(super) fn find(&mut self, device: &dyn Device) {
        match &mut self.place {
            Place::Mmio(place) => {
                let port = Arc::new(MmioPort::new(&lock(&self.board)));
                *place = Some(port.clone());
                self.port = Some(port);
            }
            Place::Pci(bus) => {
                let slot = bus.find();
                let port = PciPort::new(slot, &device.requires(), bus.vectors);
                self.set_pci_port(port);
            }
        }
    }

    fn set_pci_port(&mut self, port: PciPort) {
        let port = Arc::new(port);
        if let Place::Pci(bus) = &mut self.place {
            bus.port = Some(port.clone());
        }
        self.port = Some(port);
    }

    /// Has the driver go on with `device`, which was restored and goes on, as with the one in the machine `old`.
    pub(super) fn find_restored(&mut self, device: &dyn Device, old: Self) {
        self.reports = old.reports();
        match (&mut self.place, &old.place) {
            (Place::Pci(bus), Place::Pci(old)) => {
                let slot = bus.find();
                assert_eq!(slot.number, old.port().slot.number);
                let port = old.port().moved_to(slot, &device.requires());
                self.set_pci_port(port);
            }
            _ => self.find(device),
        }
    }

    /// Takes `device` out of the machine, and plugs it in again: into another machine on the MMIO transport, where no guest
    /// would look for it; into the same, which runs, on the PCI one.
    pub(super) fn replug(&mut self, device: &mut dyn Device, dma: &Dma) {
        if let Place::Pci(bus) = &self.place {
            bus.eject();
        }
        self.detach(device);
        if let Place::Mmio(_) = &self.place {
            let reports = self.reports();
            *self = Self { reports, ..self.another(dma) };
        }
        self.attach(device);
        device.resume().expect("the device goes on");
        self.find(device);
    }

    /// Takes `device` out of the machine without asking the guest, which is told.
    pub(super) fn remove_by_surprise(&mut self, device: &mut dyn Device) {
        self.detach(device);
        let Place::Pci(bus) = &self.place else { panic!("nobody tells a guest without PCI") };
        bus.take_hotplug_interrupt();
        assert_eq!(bus.guest.hotplug(Hotplug::Down), 1 << bus.port().slot.number);
    }

    /// Has the guest eject what was removed, and plugs `device` in.
    pub(super) fn plug_in_after_ejection(&mut self, device: &mut dyn Device) {
        if let Place::Pci(bus) = &self.place {
            bus.guest.eject(1 << bus.port().slot.number);
            assert_eq!(bus.guest.take_removed(), [], "there is nothing to remove");
        }
        self.attach(device);
        device.resume().expect("the device goes on");
        self.find(device);
    }

    /// The machine has reset `device`: its driver finds it anew.
    pub(super) fn find_again(&mut self, device: &dyn Device) {
        if let Place::Pci(bus) = &mut self.place {
            bus.guest.settle();
            let port = bus.port();
            port.assert_disabled();
            let slot = port.slot.clone();
            let port = PciPort::new(slot, &device.requires(), bus.vectors);
            self.set_pci_port(port);
        }
    }

    /// The machine has restored its device: what it answers is where it was.
    pub(super) fn settle(&self) {
        if let Place::Pci(bus) = &self.place {
            bus.guest.settle();
        }
    }

    /// The device is configured as its driver left it.
    pub(super) fn assert_configured(&self) {
        if let Place::Pci(bus) = &self.place {
            bus.port().assert_enabled();
        }
    }

    /// The registers.
    pub(super) fn port(&self) -> &Arc<dyn Port> {
        self.port.as_ref().expect("a device that the driver has found")
    }

    /// The registers, of a device whose transport is the MMIO one.
    pub(super) fn mmio(&self) -> &MmioPort {
        match &self.place {
            Place::Mmio(Some(port)) => port,
            _ => panic!("a device behind the MMIO transport"),
        }
    }

    /// The function, of a device whose transport is the PCI one.
    pub(super) fn pci(&self) -> &Arc<PciPort> {
        match &self.place {
            Place::Pci(bus) => bus.port(),
            Place::Mmio(_) => panic!("a device behind the PCI transport"),
        }
    }

    /// The device says that it is a virtio device.
    pub(super) fn identify(&self) {
        if let Place::Mmio(Some(port)) = &self.place {
            assert_eq!(port.read(reg::VIRTIO_MMIO_MAGIC_VALUE), 0x7472_6976);
            assert_eq!(port.read(reg::VIRTIO_MMIO_VERSION), 2);
        }
    }

    pub(super) fn board(&self) -> MutexGuard<'_, TestBoard> {
        lock(&self.board)
    }

    /// What devices have reported so far.
    pub(super) fn reports(&self) -> Vec<DeviceEvent> {
        self.reports.iter().cloned().chain(self.board().reports()).collect()
    }
}
