//! A PCI bus with one function, as its guest reaches it.

use std::sync::{Arc, Mutex};

use ossature_bus::state::StateError;
use ossature_bus::testing::TestBoard;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, MetricVisitor, Mmio,
    MsiMessage, NodeKind, Requires, Size, Syscall,
};
use ossature_pci::{Bar, Function, FunctionInfo, MsixLayout, PciBus, PciHost, Vectors};

use crate::Input;

/// Steps of one input.
const STEPS: usize = 128;
/// Vectors of the sample function.
const VECTORS: u16 = 3;
/// Where its MSI-X table and pending bits are.
const TABLE: u64 = 0x100;
const PENDING: u64 = 0x800;

/// A machine with a bus and one function in slot 1.
pub(crate) struct Machine {
    pub(crate) board: TestBoard,
    bus: PciBus,
    _host: PciHost,
    pub(crate) device: Box<dyn Device>,
    ecam: Arc<dyn Mmio>,
    ports: Arc<dyn Mmio>,
    hotplug: Arc<dyn Mmio>,
    /// What configuration space is and stays.
    constant: Vec<u64>,
}

/// An access, likely to one of the registers.
pub(crate) fn access(input: &mut Input) -> Access {
    let form = input.u8();
    let size = [Size::B4, Size::B2, Size::B1, Size::B8][usize::from(form & 3)];
    let offset = match form >> 2 {
        0..0x30 => u64::from(input.u16() % 0x4000) & !(size.bytes() - 1),
        0x30..0x38 => u64::from(input.u16()),
        _ => input.number(),
    };
    Access { offset, size }
}

impl Machine {
    pub(crate) fn new(mut board: TestBoard, bus: PciBus, mut device: Box<dyn Device>) -> Self {
        let mut host = bus.host("pci").with_ports(true);
        board.attach(&mut host).expect("the bus attaches");
        board.attach(&mut *device).expect("the device attaches");
        host.resume().expect("the bus goes on");
        device.resume().expect("the device goes on");
        let [ecam, ports, hotplug] =
            ["ecam", "config", "hotplug"].map(|name| board.port(name).expect("a port"));
        let mut machine =
            Self { board, bus, _host: host, device, ecam, ports, hotplug, constant: Vec::new() };
        machine.constant = machine.constant();
        machine
    }

    fn at(register: u64, size: Size) -> Access {
        Access { offset: 1 << 15 | register, size }
    }

    pub(crate) fn read(&self, register: u64, size: Size) -> u64 {
        self.ecam.read(Self::at(register, size)).expect("configuration space")
    }

    pub(crate) fn write(&self, register: u64, size: Size, value: u64) {
        let effect = self.ecam.write(Self::at(register, size), value).expect("configuration space");
        self.board.carry_out(effect);
    }

    fn constant(&self) -> Vec<u64> {
        [0, 8, 0x2c, 0x34].map(|register| self.read(register, Size::B4)).to_vec()
    }

    /// An access to configuration space, either way, or to the registers for hotplug.
    pub(crate) fn config(&mut self, input: &mut Input) {
        let (form, mut at) = (input.u8(), access(input));
        let port = match form & 7 {
            0 => {
                at.offset %= 10;
                &self.ports
            }
            1 => {
                at.offset %= 18;
                &self.hotplug
            }
            2 => &self.ecam,
            _ => {
                at.offset = (1 << 15) | (at.offset % 0x120);
                &self.ecam
            }
        };
        if form & 8 == 0 {
            if let Ok(value) = port.read(at) {
                assert!(value <= at.size.mask(), "{value:#x} at {at:?}");
            }
        } else if let Ok(effect) = port.write(at, input.number()) {
            self.apply(effect);
        }
    }

    fn apply(&self, effect: Effect) {
        match effect {
            Effect::None | Effect::Remove(_) => {}
            Effect::Remap(_) => drop(self.board.carry_out(effect)),
            other => panic!("a write that asks for {other:?}"),
        }
    }

    /// An access to the function's BAR, wherever that is.
    pub(crate) fn bar(&mut self, at: Access, write: bool, value: u64) {
        let Some(port) = self.board.registers().last().and_then(|range| range.port()) else { return };
        if write {
            if let Ok(effect) = port.write(at, value) {
                self.apply(effect);
            }
        } else if let Ok(value) = port.read(at) {
            assert!(value <= at.size.mask(), "{value:#x} at {at:?}");
        }
    }

    /// What is true at any time.
    pub(crate) fn check(&self) {
        let present = self.hotplug.read(Access { offset: 12, size: Size::B4 });
        if present == Ok(0) {
            // It has been ejected.
            assert_eq!(self.read(0, Size::B4), 0xffff_ffff);
            return;
        }
        assert_eq!(self.constant(), self.constant, "registers that cannot be written");
        for range in
            self.board.registers().iter().filter(|range| {
                !["ecam", "config", "hotplug"].iter().any(|&name| range.name() == name.into())
            })
        {
            if let Some(base) = range.base() {
                let windows = [0xe000_0000..0x1_0000_0000, 1 << 40..2 << 40];
                assert!(windows.iter().any(|window| window.contains(&base)), "a BAR at {base:#x}");
            }
        }
    }
}

/// A function with registers that take everything, and vectors that the test signals.
struct Sample {
    function: Function,
    vectors: Arc<Mutex<Option<Vectors>>>,
}

struct Nothing;

impl Mmio for Nothing {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok(at.offset & at.size.mask())
    }
    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

impl Device for Sample {
    fn id(&self) -> &str {
        self.function.id()
    }
    fn requires(&self) -> Requires {
        self.function.requires()
    }
    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let kept = Arc::clone(&self.vectors);
        self.function.attach(&assigned, |vectors| {
            *kept.lock().expect("vectors") = Some(vectors.clone());
            Ok(vec![Arc::new(Nothing) as _, Arc::new(Nothing) as _])
        })
    }
    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }
    fn resume(&mut self) -> Result<(), DeviceError> {
        self.function.resume()
    }
    fn reset(&mut self) -> Result<(), DeviceError> {
        self.function.reset()
    }
    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Saved(Handover::new(self.function.save()?)))
    }
    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        let state = self.function.check(&handover.state)?;
        self.function.restore(state);
        Ok(())
    }
    fn detach(&mut self) -> Result<(), DeviceError> {
        self.function.detach()
    }
    fn syscalls(&self) -> &'static [Syscall] {
        &[]
    }
    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

/// The sample function on a bus of its own, and its vectors.
pub(crate) fn sample() -> (Machine, Vectors) {
    let bus = PciBus::new();
    let info = FunctionInfo::new(0x1234, 1, 0x00ff_0000)
        .bar(Bar::memory32(0, 0x4000))
        .bar(Bar::memory64(2, 0x1000))
        .msix(MsixLayout::new(VECTORS, 2, TABLE as u32, PENDING as u32));
    let vectors = Arc::new(Mutex::new(None));
    let device = Sample { function: Function::new("sample", &bus, info), vectors: Arc::clone(&vectors) };
    let machine = Machine::new(TestBoard::default(), bus, Box::new(device));
    let vectors = vectors.lock().expect("vectors").clone().expect("vectors");
    (machine, vectors)
}

/// Configuration space and hotplug.
pub fn config(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (mut machine, _) = sample();
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        match input.u8() {
            0 => drop(machine.bus.request_removal("sample")),
            1 => {
                let Ok(DeviceState::Saved(saved)) = machine.device.save() else { panic!("no state") };
                let state = saved.state.into_owned();
                machine.device.restore(Handover::new(state)).expect("it restores what it saved");
            }
            2 => machine.device.reset().expect("it resets"),
            _ => machine.config(&mut input),
        }
        machine.check();
    }
}

/// Who sends them: the function in slot 1.
const REQUESTER: u32 = 1 << 3;

/// What the MSI-X table of a function says.
#[derive(Clone, Copy, Debug)]
struct Entry {
    message: MsiMessage,
    masked: bool,
    pending: bool,
}

/// The MSI-X table, beside a model of it.
pub fn msix(bytes: &[u8]) {
    let mut input = Input::new(bytes);
    let (mut machine, vectors) = sample();
    let capability = machine.read(0x34, Size::B1);
    assert_eq!(machine.read(capability, Size::B1), 0x11);
    let name = machine.device.requires().messages[0].name;
    let mut model =
        [Entry { message: MsiMessage::default(), masked: true, pending: false }; VECTORS as usize];
    let mut control = 0;
    for _ in 0..STEPS {
        if input.is_empty() {
            break;
        }
        let op = input.u8();
        let vector = usize::from(op >> 4) % model.len();
        match op & 7 {
            0 | 1 => {
                vectors.interrupt(vector as u16).expect("a vector").signal().expect("an event");
                model[vector].pending = true;
            }
            2 => {
                let value = input.u16();
                machine.write(capability + 2, Size::B2, value.into());
                control = value & 0xc000;
            }
            3 => {
                machine.device.reset().expect("it resets");
                model = [Entry { message: MsiMessage::default(), masked: true, pending: false };
                    VECTORS as usize];
                control = 0;
            }
            4 => {
                let Ok(DeviceState::Saved(saved)) = machine.device.save() else { panic!("no state") };
                let state = saved.state.into_owned();
                machine.device.reset().expect("it resets");
                machine.device.restore(Handover::new(state)).expect("it restores what it saved");
            }
            5 => {
                // Whatever is not the table's.
                let mut at = access(&mut input);
                at.offset = PENDING + at.offset % 0x400;
                machine.bar(at, input.flag(), input.number());
            }
            _ => {
                let field = u64::from(op >> 3 & 1) * 4 + u64::from(input.u8() & 1) * 8;
                let wide = op & 8 == 0 && input.flag();
                let (size, value) = (if wide { Size::B8 } else { Size::B4 }, input.number());
                let at = Access { offset: TABLE + 16 * vector as u64 + field, size };
                machine.bar(at, true, value);
                let entry = &mut model[vector];
                for half in 0..if wide { 2 } else { 1 } {
                    let value = value >> (32 * half) & 0xffff_ffff;
                    let message = &mut entry.message;
                    match field + 4 * half {
                        0 => message.address = message.address & !0xffff_ffff | value & !3,
                        4 => message.address = message.address & 0xffff_ffff | value << 32,
                        8 => message.data = value as u32,
                        _ => entry.masked = value & 1 != 0,
                    }
                }
            }
        }
        assert_eq!(machine.read(capability + 2, Size::B2), u64::from(control | (VECTORS - 1)));
        for (vector, entry) in model.iter_mut().enumerate() {
            let open = control & 0xc000 == 0x8000 && !entry.masked;
            let sent = std::mem::take(&mut entry.pending);
            entry.pending = sent && !open;
            let expected = (sent && open).then_some(entry.message.from_requester(REQUESTER));
            assert_eq!(machine.board.take_message(name, vector), expected, "vector {vector} {entry:?}");
        }
        let pending =
            (0..model.len()).fold(0, |bits, vector| bits | u64::from(model[vector].pending) << vector);
        let port = machine.board.registers().last().and_then(|range| range.port()).expect("a BAR");
        assert_eq!(port.read(Access { offset: PENDING, size: Size::B8 }), Ok(pending));
        for (vector, entry) in (0..).zip(&model) {
            let words =
                [entry.message.address, u64::from(entry.message.data) | u64::from(entry.masked) << 32];
            let read = [0, 8].map(|field| {
                port.read(Access { offset: TABLE + 16 * vector + field, size: Size::B8 }).expect("an entry")
            });
            assert_eq!(read, words, "vector {vector}");
        }
    }
}
