//! A bus, and functions on it that keep what is written to their BARs.

mod bars;
mod config;
mod hotplug;
mod msix;
mod properties;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ossature_bus::testing::TestBoard;
use ossature_bus::{Access, BusFault, Device, DeviceError, Effect, Mmio, MmioMut, Size};

use crate::{Bar, Function, FunctionInfo, MsixLayout, PciBus, PciHost, Vectors};

/// The windows of the test board.
const LOW: u64 = 0xe000_0000;
const HIGH: u64 = 0x110_0000_0000;

const COMMAND: u64 = 0x04;
const BAR0: u64 = 0x10;

/// Registers that are memory.
#[derive(Default)]
struct Memory(BTreeMap<u64, u64>);

impl MmioMut for Memory {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        Ok(self.0.get(&at.offset).copied().unwrap_or(0) & at.size.mask())
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault> {
        self.0.insert(at.offset, value);
        Ok(Effect::None)
    }
}

/// A host bridge on a board of its own.
struct Host {
    bus: PciBus,
    board: TestBoard,
    device: PciHost,
}

impl Host {
    fn new() -> Self {
        Self::with_ports(true)
    }

    fn with_ports(ports: bool) -> Self {
        let bus = PciBus::new();
        let (mut board, mut device) = (TestBoard::default(), bus.host("pci").with_ports(ports));
        board.attach(&mut device).unwrap();
        Self { bus, board, device }
    }

    fn started() -> Self {
        let mut host = Self::new();
        host.device.resume().unwrap();
        host
    }

    fn port(&self, name: &'static str) -> Arc<dyn Mmio> {
        self.board.port(name).unwrap()
    }

    fn read(&self, slot: u8, offset: u64, size: Size) -> u64 {
        self.port("ecam").read(Access { offset: u64::from(slot) << 15 | offset, size }).unwrap()
    }

    fn write(&self, slot: u8, offset: u64, size: Size, value: u64) -> Effect {
        self.port("ecam").write(Access { offset: u64::from(slot) << 15 | offset, size }, value).unwrap()
    }

    /// Reads a hotplug register.
    fn hotplug(&self, offset: u64) -> u32 {
        self.port("hotplug").read(Access { offset, size: Size::B4 }).unwrap() as u32
    }

    fn eject(&self, slots: u32) -> Effect {
        self.port("hotplug").write(Access { offset: 8, size: Size::B4 }, slots.into()).unwrap()
    }

    /// Interrupts since the last time.
    fn interrupts(&self) -> u64 {
        self.board.edges("hotplug").unwrap().take().unwrap()
    }
}

/// A function on a board of its own.
struct Plugged {
    function: Function,
    board: TestBoard,
    vectors: Option<Vectors>,
}

fn info() -> FunctionInfo {
    FunctionInfo::new(0x1234, 0x5678, 0x01_8000).revision(3).subsystem(0x9abc, 0xdef0)
}

/// A function with a 64-bit BAR with MSI-X for `vectors`, and a 32-bit BAR.
fn sample(vectors: u16) -> FunctionInfo {
    info()
        .bar(Bar::memory64(0, 0x10000).prefetchable())
        .bar(Bar::memory32(3, 0x1000))
        .msix(MsixLayout::new(vectors, 0, 0x8000, 0x1000))
}

impl Plugged {
    fn try_new(id: &str, host: &Host, slot: Option<u8>, info: FunctionInfo) -> Result<Self, DeviceError> {
        let mut function = Function::new(id, &host.bus, info.clone());
        if let Some(slot) = slot {
            function = function.at(slot);
        }
        let mut board = TestBoard::default();
        let assigned = board.assign(&function.requires());
        let mut given = None;
        function.attach(&assigned, |vectors| {
            given = Some(vectors.clone());
            Ok(info.bars.iter().map(|_| Arc::new(Mutex::new(Memory::default())) as _).collect())
        })?;
        Ok(Self { function, board, vectors: given })
    }

    /// A function that the guest sees.
    fn new(host: &Host, info: FunctionInfo) -> Self {
        let mut plugged = Self::try_new("sample", host, None, info).unwrap();
        plugged.function.resume().unwrap();
        plugged
    }

    fn slot(&self) -> u8 {
        self.function.slot().unwrap()
    }

    fn read(&self, host: &Host, offset: u64, size: Size) -> u64 {
        host.read(self.slot(), offset, size)
    }

    /// Writes configuration space, and carries the effect out as a machine does.
    fn write(&self, host: &Host, offset: u64, size: Size, value: u64) {
        let _ = self.effect_of(host, offset, size, value);
    }

    /// The same, to look at the effect.
    fn effect_of(&self, host: &Host, offset: u64, size: Size, value: u64) -> Effect {
        let effect = host.write(self.slot(), offset, size, value);
        self.board.carry_out(effect);
        effect
    }

    fn base(&self, bar: usize) -> Option<u64> {
        self.board.registers()[bar].base()
    }

    /// What answers BAR 0.
    fn bar0(&self) -> Arc<dyn Mmio> {
        self.board.registers()[0].port().unwrap()
    }

    fn table(&self, offset: u64) -> u64 {
        self.bar0().read(Access { offset: 0x8000 + offset, size: Size::B4 }).unwrap()
    }

    fn set_table(&self, offset: u64, value: u64) {
        let _ = self.bar0().write(Access { offset: 0x8000 + offset, size: Size::B4 }, value).unwrap();
    }

    /// Message control of MSI-X, which is the first capability.
    fn set_control(&self, host: &Host, value: u64) {
        self.write(host, 0x42, Size::B2, value);
    }
}
