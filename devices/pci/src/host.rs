//! The device that connects a bus to a machine: both ways into configuration space, and the registers for hotplug.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover, InterruptRequest,
    MetricVisitor, Mmio, NodeKind, RegistersRequest, Requires, Size, Syscall, WindowRequest,
};

use crate::bus::{Hotplug, PciBus, SLOTS};

const ECAM: &str = "ecam";
const CONFIG: &str = "config";
const HOTPLUG: &str = "hotplug";
const MEMORY32: &str = "memory32";
const MEMORY64: &str = "memory64";

/// Bytes of ECAM for one bus, for one slot and for one function.
const ECAM_LEN: u64 = 1 << 20;
const SLOT_SHIFT: u32 = 15;
const FUNCTION_SHIFT: u32 = 12;

/// The ports of configuration mechanism 1.
const CONFIG_PORT: u64 = 0xcf8;
const CONFIG_PORTS: u16 = 8;
/// Offset of its data.
const DATA: u64 = 4;
/// Bit of its address: accesses to the data reach configuration space.
const ENABLE: u32 = 1 << 31;
/// Bits of its address that can be written: enable, bus, slot, function, register.
const ADDRESS: u32 = 0x80ff_fffc;

/// The hotplug registers, and how many ports they have.
const UP: u64 = 0;
const DOWN: u64 = 4;
const EJECT: u64 = 8;
const PRESENT: u64 = 12;
const HOTPLUG_PORTS: u16 = 16;

/// Machines have I/O ports on this architecture.
const HAS_PORTS: bool = cfg!(target_arch = "x86_64");

/// Bytes for BARs below 4 GiB, and above.
const SIZE32: u64 = 256 << 20;
const SIZE64: u64 = 64 << 30;
/// What does above, on a host whose guests have few bits of addresses.
const LEAST64: u64 = 1 << 30;

const KIND: &str = "ossature.pci-host";
const VERSION: u16 = 1;
const SAVED_ADDRESS: Field = Field::new(1, "configuration address");
const SAVED_UP: Field = Field::new(2, "slots that functions have come to");
const SAVED_DOWN: Field = Field::new(3, "slots to give up");
const SAVED_GONE: Field = Field::new(4, "slots to eject");

/// The host bridge of a [`PciBus`] as a device.
///
/// It asks for 1 MiB of memory `ecam` for the configuration spaces of the one bus, for the ports `config` (0xcf8 to 0xcff)
/// that lead there too, for windows `memory32` and `memory64` in which guests place BARs, and for 16 ports and an edge
/// interrupt, `hotplug`. Where machines have no I/O ports, on all architectures but x86_64, it does without the ports
/// `config`, and `hotplug` is 16 bytes of memory ([`with_ports`](Self::with_ports)).
///
/// | offset | what (32 bits, bit N is slot N) |
/// |---|---|
/// | 0 | read: slots that functions have come to since it was last read |
/// | 4 | read: slots that the guest is asked to give up since it was last read |
/// | 8 | write: the slot that the guest ejects |
/// | 12 | read: slots that have a function; never slot 0, the host bridge |
///
/// The interrupt says that there is something to read. A guest's ACPI code reads both registers, notifies the slots'
/// devices of what has come (device check) and what is to go (eject request), and writes a slot to be ejected in its
/// `_EJ0`. The function is gone with this write, and the machine removes its device. A device that the VMM removes
/// without asking is an eject request afterwards; its slot stays empty until the guest has ejected it or is reset.
#[derive(Debug)]
pub struct PciHost {
    id: String,
    bus: PciBus,
    attached: Option<Arc<ConfigPorts>>,
    ports: bool,
    /// What the guest has not been told is signalled again when it goes on.
    restored: bool,
    size32: u64,
    size64: u64,
    least64: u64,
}

impl PciHost {
    pub(crate) fn new(id: String, bus: PciBus) -> Self {
        let (attached, restored) = (None, false);
        Self {
            id,
            bus,
            attached,
            ports: HAS_PORTS,
            restored,
            size32: SIZE32,
            size64: SIZE64,
            least64: LEAST64,
        }
    }

    /// With windows of these sizes, powers of two, below 4 GiB and above: 256 MiB and 64 GiB if nothing is said,
    /// of the latter as much as there is room for on the host, 1 GiB at least.
    #[must_use]
    pub fn with_windows(mut self, below_4g: u64, above: u64) -> Self {
        (self.size32, self.size64, self.least64) = (below_4g, above, above);
        self
    }

    /// With I/O ports or without them: as the architecture has it if nothing is said.
    #[must_use]
    pub fn with_ports(mut self, ports: bool) -> Self {
        self.ports = ports;
        self
    }

    fn ports(&self) -> Result<&ConfigPorts, DeviceError> {
        let loose = || DeviceError::new(format!("{} is not attached to a machine", self.id));
        self.attached.as_deref().ok_or_else(loose)
    }

    fn leave(&mut self) {
        if self.attached.take().is_some() {
            self.bus.detach();
        }
        self.restored = false;
    }
}

impl Device for PciHost {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        let requires = Requires::new().registers(RegistersRequest::memory(ECAM, ECAM_LEN));
        let requires = if self.ports {
            let hotplug = RegistersRequest::ports(HOTPLUG, HOTPLUG_PORTS).align(HOTPLUG_PORTS.into());
            requires
                .registers(RegistersRequest::ports(CONFIG, CONFIG_PORTS).fixed(CONFIG_PORT))
                .registers(hotplug)
        } else {
            requires.registers(RegistersRequest::memory(HOTPLUG, HOTPLUG_PORTS.into()))
        };
        requires
            .interrupt(InterruptRequest::edge(HOTPLUG))
            .window(WindowRequest::memory32(MEMORY32, self.size32))
            .window(WindowRequest::memory64(MEMORY64, self.size64).at_least(self.least64))
            .brings(self.bus.name())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let named = |e: DeviceError| e.context(&self.id);
        let registers = |name| assigned.registers(name).map_err(named);
        let (ecam, hotplug) = (registers(ECAM)?, registers(HOTPLUG)?);
        let config = self.ports.then(|| registers(CONFIG)).transpose()?;
        let interrupt = assigned.interrupt(HOTPLUG).map_err(named)?;
        let windows = [MEMORY32, MEMORY64].map(|name| assigned.window(name).cloned());
        let windows = windows.into_iter().collect::<Result<Vec<_>, _>>().map_err(named)?;
        self.bus.attach(windows, interrupt.clone()).map_err(|e| named(e.into()))?;
        let ports = Arc::new(ConfigPorts { bus: self.bus.clone(), address: AtomicU32::new(0) });
        ecam.answer(Arc::new(EcamPort(self.bus.clone())));
        config.iter().for_each(|config| config.answer(ports.clone()));
        hotplug.answer(Arc::new(HotplugPort(self.bus.clone())));
        self.attached = Some(ports);
        Ok(NodeKind::PciHost)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.ports().map(drop)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.ports()?;
        self.bus.start();
        if std::mem::take(&mut self.restored) {
            self.bus.signal_again();
        }
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        self.ports()?.address.store(0, Ordering::Relaxed);
        self.bus.reset();
        self.restored = false;
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let address = self.ports()?.address.load(Ordering::Relaxed);
        let Hotplug { up, down, gone } = self.bus.hotplug();
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(SAVED_ADDRESS, address).u32(SAVED_UP, up).u32(SAVED_DOWN, down).u32(SAVED_GONE, gone);
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        let Some(ports) = &self.attached else {
            return Err(StateError::Unsupported { reason: "it is not attached to a machine" });
        };
        let (address, hotplug) = read_state(&handover.state, self.ports)?;
        if !self.bus.restore_hotplug(hotplug) {
            return Err(StateError::Inconsistent {
                field: "slots that functions have come to",
                reason: "slots have no function, or have one that has gone",
            });
        }
        ports.address.store(address, Ordering::Relaxed);
        // The guest whose state it is has looked at the bus.
        self.bus.start();
        self.restored = true;
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.ports()?;
        self.leave();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        &[Syscall("read"), Syscall("write")] // pending bits of its functions' vectors; interrupts
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

impl Drop for PciHost {
    fn drop(&mut self) {
        self.leave();
    }
}

/// The address of configuration mechanism 1, which is 0 without its `ports`, and hotplug.
fn read_state(state: &SavedState<'_>, ports: bool) -> Result<(u32, Hotplug), StateError> {
    let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
    let address = fields.u32(SAVED_ADDRESS)?;
    let hotplug =
        Hotplug { up: fields.u32(SAVED_UP)?, down: fields.u32(SAVED_DOWN)?, gone: fields.u32(SAVED_GONE)? };
    fields.finish()?;
    if address & !(if ports { ADDRESS } else { 0 }) != 0 {
        return Err(StateError::Value { field: "configuration address", value: address.into() });
    }
    Ok((address, hotplug))
}

/// Fails for a register that has another width, or is not aligned. Configuration space has none of 64 bits.
fn check(at: Access) -> Result<(), BusFault> {
    match at.size {
        Size::B8 => Err(BusFault::Width),
        size if !at.offset.is_multiple_of(size.bytes()) => Err(BusFault::Alignment),
        _ => Ok(()),
    }
}

/// The configuration spaces of the bus, one after the other.
struct EcamPort(PciBus);

/// Slot, function and register at an offset.
fn locate(offset: u64) -> (u8, u8, u16) {
    let slot = (offset >> SLOT_SHIFT) as u8 % SLOTS;
    let function = (offset >> FUNCTION_SHIFT) as u8 & 7;
    (slot, function, (offset & ((1 << FUNCTION_SHIFT) - 1)) as u16)
}

impl Mmio for EcamPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        check(at)?;
        let (slot, function, register) = locate(at.offset);
        Ok(self.0.read(slot, function, register, at.size))
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        check(at)?;
        let (slot, function, register) = locate(at.offset);
        Ok(self.0.write(slot, function, register, at.size, value))
    }
}

/// Configuration mechanism 1: a port for the address, and four for the data.
#[derive(Debug)]
struct ConfigPorts {
    bus: PciBus,
    address: AtomicU32,
}

impl ConfigPorts {
    /// Slot, function and register of an access to the data; `None` if nothing is there.
    fn target(&self, at: Access) -> Option<(u8, u8, u16)> {
        let address = self.address.load(Ordering::Relaxed);
        let [register, low, bus, _] = address.to_le_bytes();
        let here = address & ENABLE != 0 && bus == 0;
        here.then(|| (low >> 3, low & 7, u16::from(register) + (at.offset - DATA) as u16))
    }
}

impl Mmio for ConfigPorts {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        check(at)?;
        match at.offset {
            0 if at.size == Size::B4 => Ok(self.address.load(Ordering::Relaxed).into()),
            0..DATA => Err(BusFault::Width),
            _ => Ok(self.target(at).map_or(at.size.mask(), |(slot, function, register)| {
                self.bus.read(slot, function, register, at.size)
            })),
        }
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        check(at)?;
        match at.offset {
            0 if at.size == Size::B4 => {
                self.address.store(value as u32 & ADDRESS, Ordering::Relaxed);
                Ok(Effect::None)
            }
            0..DATA => Err(BusFault::Width),
            _ => Ok(self.target(at).map_or(Effect::None, |(slot, function, register)| {
                self.bus.write(slot, function, register, at.size, value)
            })),
        }
    }
}

struct HotplugPort(PciBus);

impl Mmio for HotplugPort {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        match (at.offset, at.size) {
            (UP, Size::B4) => Ok(self.0.take_up().into()),
            (DOWN, Size::B4) => Ok(self.0.take_down().into()),
            (PRESENT, Size::B4) => Ok(self.0.present().into()),
            (EJECT, Size::B4) => Err(BusFault::WriteOnly),
            (offset, Size::B4) if offset.is_multiple_of(4) => Err(BusFault::Unmapped),
            (_, Size::B4) => Err(BusFault::Alignment),
            _ => Err(BusFault::Width),
        }
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        match (at.offset, at.size) {
            (EJECT, Size::B4) => Ok(self.0.eject(value as u32)),
            (UP | DOWN | PRESENT, Size::B4) => Err(BusFault::ReadOnly),
            (offset, Size::B4) if offset.is_multiple_of(4) => Err(BusFault::Unmapped),
            (_, Size::B4) => Err(BusFault::Alignment),
            _ => Err(BusFault::Width),
        }
    }
}
