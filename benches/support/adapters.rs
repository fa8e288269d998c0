//! Paths through the adapters to rust-vmm's crates, beside the same paths without them.

use std::sync::{Arc, Mutex};

use ossature::bus::testing::TestBoard;
use ossature::bus::{
    AddressSpace, Bus, BusCursor, Device, Event, EventLoop, Handler, Hosted, Size, Source, Turn,
};
use ossature::legacy::{Serial, SerialPort, Uart, Uart16550, backend};
use ossature_rust_vmm::event_manager::{
    EventManager, EventOps, EventSet, Events, LoopSubscriber, MutEventSubscriber, SubscriberHandler,
    SubscriberOps,
};
use ossature_rust_vmm::vm_device::bus::{MmioAddress, MmioRange};
use ossature_rust_vmm::vm_device::device_manager::{IoManager, MmioManager};
use ossature_rust_vmm::vm_device::{FromMmio, ToVmDevice};
use ossature_rust_vmm::vm_superio::{self, InterruptTrigger, SuperioUart};

use super::bus::Number;

const BASE: u64 = 0xd000_0000;
const COM1: u64 = 0x3f8;

/// A serial port on a bus, whose line takes everything.
pub struct Port {
    cursor: BusCursor,
    _serial: Box<dyn Device>,
}

impl Port {
    /// With our registers.
    pub fn ours() -> Self {
        Self::of(Uart16550::new())
    }

    /// With vm-superio's.
    pub fn theirs() -> Self {
        Self::of(SuperioUart::new())
    }

    fn of(uart: impl Uart + 'static) -> Self {
        let line = backend::writer(std::io::sink());
        let mut serial = Serial::with_uart("com1", SerialPort::COM1, line, uart);
        let mut board = TestBoard::default();
        board.attach(&mut serial).unwrap();
        serial.resume().unwrap();
        let bus = Bus::new(AddressSpace::Pio);
        bus.insert(COM1, 8, "com1", board.port("registers").unwrap()).unwrap();
        Self { cursor: bus.cursor(), _serial: Box::new(serial) }
    }

    /// What a driver does that polls.
    pub fn send(&mut self) -> u64 {
        let ready = self.cursor.read(COM1 + 5, Size::B1).unwrap();
        let _ = self.cursor.write(COM1, Size::B1, b'x'.into()).unwrap();
        ready
    }
}

/// The same with vm-superio's serial port by itself, in a mutex, as its examples have it.
pub struct Superio(Mutex<vm_superio::Serial<InterruptTrigger, vm_superio::serial::NoEvents, std::io::Sink>>);

impl Superio {
    pub fn new() -> Self {
        let interrupt = Arc::new(Event::new().unwrap()).into();
        Self(Mutex::new(vm_superio::Serial::new(InterruptTrigger(interrupt), std::io::sink())))
    }

    pub fn send(&self) -> u64 {
        let ready = self.0.lock().unwrap().read(5);
        self.0.lock().unwrap().write(0, b'x').unwrap();
        ready.into()
    }
}

/// A vm-device device on our bus.
pub fn their_device() -> impl FnMut() -> u64 {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(BASE, 0x1000, "device", Arc::new(FromMmio::new(MmioAddress(BASE), Number(1)))).unwrap();
    let mut cursor = bus.cursor();
    move || cursor.read(BASE + 0x70, Size::B4).unwrap()
}

/// A device on vm-device's manager: theirs, or one of ours.
pub fn their_bus(ours: bool) -> impl FnMut() -> u64 {
    let mut manager = IoManager::new();
    let range = MmioRange::new(MmioAddress(BASE), 0x1000).unwrap();
    if ours {
        manager.register_mmio(range, Arc::new(ToVmDevice::new(Arc::new(Number(1)), |_| ()))).unwrap();
    } else {
        manager.register_mmio(range, Arc::new(Number(1))).unwrap();
    }
    move || {
        let mut data = [0; 4];
        manager.mmio_read(MmioAddress(BASE + 0x70), &mut data).unwrap();
        u32::from_le_bytes(data).into()
    }
}

/// Takes its event's count, on a loop of either kind.
struct Counts(Arc<Event>);

impl Handler for Counts {
    fn sources(&self) -> Vec<Source> {
        let fd = std::os::fd::AsRawFd::as_raw_fd(&*self.0);
        vec![Source { token: 0, fd, interest: ossature::bus::Interest::Readable }]
    }

    fn turn(&mut self, _: u16) -> Turn {
        self.0.take().unwrap();
        Turn::Sleep
    }
}

impl MutEventSubscriber for Counts {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        ops.add(Events::new(&*self.0, EventSet::IN)).unwrap();
    }

    fn process(&mut self, _: Events, _: &mut EventOps<'_>) {
        self.0.take().unwrap();
    }
}

fn on_loop(event: &Arc<Event>) -> (EventLoop, Hosted<Counts>) {
    let event_loop = EventLoop::new().unwrap();
    let hosted = event_loop.host(Counts(event.clone())).unwrap();
    (event_loop, hosted)
}

/// An event and its turn, on our loop.
pub fn our_loop() -> impl FnMut() {
    let event = Arc::new(Event::new().unwrap());
    let (event_loop, hosted) = on_loop(&event);
    move || {
        let _ = &hosted;
        event.signal().unwrap();
        while event_loop.pass().unwrap() {}
    }
}

/// The same on our loop with a subscriber of theirs.
pub fn their_subscriber() -> impl FnMut() {
    let event = Arc::new(Event::new().unwrap());
    let event_loop = EventLoop::new().unwrap();
    let handler = SubscriberHandler::new(Counts(event.clone())).unwrap();
    let hosted = event_loop.host(handler).unwrap();
    move || {
        let _ = &hosted;
        event.signal().unwrap();
        while event_loop.pass().unwrap() {}
    }
}

/// The same on a manager of theirs.
pub fn their_loop() -> impl FnMut() {
    let event = Arc::new(Event::new().unwrap());
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(Counts(event.clone()));
    move || {
        event.signal().unwrap();
        while manager.run_with_timeout(0).unwrap() > 0 {}
    }
}

/// The same on our loop, on a manager of theirs.
pub fn our_loop_on_theirs() -> impl FnMut() {
    let event = Arc::new(Event::new().unwrap());
    let (event_loop, hosted) = on_loop(&event);
    let mut manager = EventManager::new().unwrap();
    manager.add_subscriber(LoopSubscriber::new(&event_loop, |error| panic!("{error}")));
    move || {
        let _ = &hosted;
        event.signal().unwrap();
        while manager.run_with_timeout(0).unwrap() > 0 {}
    }
}
