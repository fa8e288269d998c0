//! vm-device, and its adapters: its devices on our bus and in our machines, and ours on its buses.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`DeviceMmio`], [`DevicePio`] | [`Mmio`], for [`Bus::insert`](ossature_bus::Bus::insert) | [`FromMmio`], [`FromPio`] |
//! | [`DeviceMmio`], [`DevicePio`] | [`Device`], for a machine | [`FromVmDevice`] |
//! | [`DeviceMmio`] and [`DevicePio`], for an [`IoManager`](device_manager::IoManager) | [`Mmio`] | [`ToVmDevice`] |
//! | [`MmioRange`], [`PioRange`] | [`RegistersRequest`] | [`Request`], [`Range`] |
//!
//! vm-device itself implements its traits for a `Mutex` with a device in it that needs `&mut self`.
//!
//! # A device of theirs on our bus, and back
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use ossature_bus::{AddressSpace, Bus, Size};
//! use ossature_rust_vmm::vm_device::bus::{PioAddress, PioAddressOffset, PioRange};
//! use ossature_rust_vmm::vm_device::device_manager::{IoManager, PioManager};
//! use ossature_rust_vmm::vm_device::{FromPio, MutDevicePio, ToVmDevice};
//!
//! /// Reads as what was written last.
//! struct Scratch(u8);
//!
//! impl MutDevicePio for Scratch {
//!     fn pio_read(&mut self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
//!         data.fill(self.0);
//!     }
//!     fn pio_write(&mut self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
//!         self.0 = data[0];
//!     }
//! }
//!
//! let registers = Arc::new(FromPio::new(PioAddress(0x80), Mutex::new(Scratch(0))));
//! let bus = Bus::new(AddressSpace::Pio);
//! bus.insert(0x80, 1, "scratch", registers.clone())?;
//! let mut cursor = bus.cursor();
//! cursor.write(0x80, Size::B1, 0x55).unwrap();
//! assert_eq!(cursor.read(0x80, Size::B1), Ok(0x55));
//!
//! // `registers` is an `Mmio` of ours now, and so goes onto a bus of theirs. This one has no effects.
//! let mut manager = IoManager::new();
//! let back = Arc::new(ToVmDevice::new(registers, |_| ()));
//! manager.register_pio(PioRange::new(PioAddress(0x3f0), 1)?, back)?;
//! let mut data = [0];
//! manager.pio_read(PioAddress(0x3f0), &mut data)?;
//! assert_eq!(data, [0x55]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use ::vm_device::*;

use std::fmt;
use std::sync::Arc;

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, AddressSpace, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, Handover,
    MetricVisitor, Mmio, NodeKind, Placement, RegistersRequest, Requires, Size, Syscall,
};

use self::bus::{MmioAddress, MmioAddressOffset, MmioRange, PioAddress, PioAddressOffset, PioRange};

/// The name of the one range that a vm-device device has.
const REGISTERS: &str = "registers";

/// Why [`FromVmDevice`] cannot be saved.
const NO_STATE: &str = "vm-device devices have no state that can be saved";

/// The registers of a memory-mapped vm-device device.
#[derive(Debug)]
pub struct FromMmio<D> {
    base: MmioAddress,
    device: D,
}

impl<D: DeviceMmio> FromMmio<D> {
    /// `device`, which will be told that it is at `base`.
    pub fn new(base: MmioAddress, device: D) -> Self {
        Self { base, device }
    }
}

impl<D: DeviceMmio + Send + Sync> Mmio for FromMmio<D> {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok(read(at.size, |data| self.device.mmio_read(self.base, at.offset, data)))
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        write(at.size, value, |data| self.device.mmio_write(self.base, at.offset, data));
        Ok(Effect::None)
    }
}

/// The registers of a vm-device device on I/O ports.
#[derive(Debug)]
pub struct FromPio<D> {
    base: PioAddress,
    device: D,
}

impl<D: DevicePio> FromPio<D> {
    /// `device`, which will be told that it is at `base`.
    pub fn new(base: PioAddress, device: D) -> Self {
        Self { base, device }
    }
}

impl<D: DevicePio + Send + Sync> Mmio for FromPio<D> {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        let offset = u16::try_from(at.offset).map_err(|_| BusFault::Unmapped)?;
        Ok(read(at.size, |data| self.device.pio_read(self.base, offset, data)))
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let offset = u16::try_from(at.offset).map_err(|_| BusFault::Unmapped)?;
        write(at.size, value, |data| self.device.pio_write(self.base, offset, data));
        Ok(Effect::None)
    }
}

/// Bytes that the device leaves alone read as ones, as where no device is.
fn read(size: Size, f: impl FnOnce(&mut [u8])) -> u64 {
    let mut data = [0xff; 8];
    f(data.split_at_mut(size.bytes() as usize).0);
    u64::from_le_bytes(data) & size.mask()
}

fn write(size: Size, value: u64, f: impl FnOnce(&[u8])) {
    f(value.to_le_bytes().split_at(size.bytes() as usize).0);
}

/// A vm-device device as a [`Device`] of a machine.
///
/// vm-device knows registers only. So this device has one range at a fixed place, no interrupt that the
/// machine gives it, no life cycle and no state to save. Whatever else the device can do, the VMM does with its
/// own handle on it.
pub struct FromVmDevice {
    id: String,
    range: RegistersRequest,
    registers: Arc<dyn Mmio>,
    reset: Option<Box<dyn FnMut() + Send>>,
    syscalls: &'static [Syscall],
}

impl FromVmDevice {
    /// The memory-mapped `device` at `range`.
    pub fn mmio(
        id: impl Into<String>,
        range: MmioRange,
        device: impl DeviceMmio + Send + Sync + 'static,
    ) -> Self {
        Self::new(id.into(), range.request(), Arc::new(FromMmio::new(range.base(), device)))
    }

    /// The `device` on the I/O ports of `range`.
    pub fn pio(
        id: impl Into<String>,
        range: PioRange,
        device: impl DevicePio + Send + Sync + 'static,
    ) -> Self {
        Self::new(id.into(), range.request(), Arc::new(FromPio::new(range.base(), device)))
    }

    fn new(id: String, range: RegistersRequest, registers: Arc<dyn Mmio>) -> Self {
        Self { id, range, registers, reset: None, syscalls: &[] }
    }

    /// How the device gets back to its first state when the machine is reset. Without it, the reset fails.
    #[must_use]
    pub fn on_reset(mut self, reset: impl FnMut() + Send + 'static) -> Self {
        self.reset = Some(Box::new(reset));
        self
    }

    /// The system calls that the device makes once the machine runs. Without it, none.
    #[must_use]
    pub fn with_syscalls(mut self, syscalls: &'static [Syscall]) -> Self {
        self.syscalls = syscalls;
        self
    }
}

impl fmt::Debug for FromVmDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FromVmDevice")
            .field("id", &self.id)
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

impl Device for FromVmDevice {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new().registers(self.range.clone())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        assigned.registers(REGISTERS)?.answer(self.registers.clone());
        Ok(NodeKind::Hidden)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) -> Result<(), DeviceError> {
        let Some(reset) = &mut self.reset else {
            return Err(DeviceError::new("nothing says how this vm-device is reset"));
        };
        reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Unsupported { reason: NO_STATE })
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: NO_STATE })
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.syscalls
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}

/// Our registers for a vm-device bus, memory-mapped or on ports.
///
/// That bus knows neither faults nor effects. A fault is what it is for the guest: a read answers all ones, a
/// write is dropped. An effect goes to a function, on the thread that dispatches and after the device has returned.
pub struct ToVmDevice {
    device: Arc<dyn Mmio>,
    effects: Box<dyn Fn(Effect) + Send + Sync>,
}

impl ToVmDevice {
    /// `device`, whose effects other than [`Effect::None`] are carried out by `effects`.
    pub fn new(device: Arc<dyn Mmio>, effects: impl Fn(Effect) + Send + Sync + 'static) -> Self {
        Self { device, effects: Box::new(effects) }
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let size = Size::from_len(data.len());
        let value = size.and_then(|size| self.device.read(Access { offset, size }).ok());
        data.fill(0xff);
        if let Some(value) = value {
            data.iter_mut().zip(value.to_le_bytes()).for_each(|(byte, value)| *byte = value);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(size) = Size::from_len(data.len()) else { return };
        let mut value = [0; 8];
        value.iter_mut().zip(data).for_each(|(value, byte)| *value = *byte);
        match self.device.write(Access { offset, size }, u64::from_le_bytes(value)) {
            Ok(Effect::None) | Err(_) => {}
            Ok(effect) => (self.effects)(effect),
        }
    }
}

impl fmt::Debug for ToVmDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ToVmDevice").finish_non_exhaustive()
    }
}

impl DeviceMmio for ToVmDevice {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        self.read(offset, data);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        self.write(offset, data);
    }
}

impl DevicePio for ToVmDevice {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        self.read(offset.into(), data);
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        self.write(offset.into(), data);
    }
}

/// A range of vm-device as what a device of ours requires.
pub trait Request {
    /// A range named `registers`, fixed at this place.
    fn request(self) -> RegistersRequest;
}

impl Request for MmioRange {
    fn request(self) -> RegistersRequest {
        RegistersRequest::memory(REGISTERS, self.size()).align(1).fixed(self.base().0)
    }
}

impl Request for PioRange {
    fn request(self) -> RegistersRequest {
        RegistersRequest::ports(REGISTERS, self.size()).fixed(self.base().0.into())
    }
}

/// What a device of ours requires as a range of vm-device.
///
/// ```
/// use ossature_bus::RegistersRequest;
/// use ossature_rust_vmm::vm_device::Range;
/// use ossature_rust_vmm::vm_device::bus::PioAddress;
///
/// let request = RegistersRequest::ports("registers", 8).fixed(0x3f8);
/// assert_eq!(request.pio_range()?.last(), PioAddress(0x3ff));
/// assert!(request.mmio_range().is_err());
/// # Ok::<(), ossature_rust_vmm::vm_device::bus::Error>(())
/// ```
pub trait Range {
    /// Fails for ports, for a range without a fixed place, and for one that vm-device itself refuses.
    fn mmio_range(&self) -> Result<MmioRange, bus::Error>;
    /// Fails for memory, for a range without a fixed place, and for one that vm-device itself refuses.
    fn pio_range(&self) -> Result<PioRange, bus::Error>;
}

impl Range for RegistersRequest {
    fn mmio_range(&self) -> Result<MmioRange, bus::Error> {
        MmioRange::new(MmioAddress(place(self, AddressSpace::Mmio)?), self.size)
    }

    fn pio_range(&self) -> Result<PioRange, bus::Error> {
        let number = |value| u16::try_from(value).map_err(|_| bus::Error::InvalidRange);
        let base = place(self, AddressSpace::Pio)?;
        PioRange::new(PioAddress(number(base)?), number(self.size)?)
    }
}

fn place(range: &RegistersRequest, space: AddressSpace) -> Result<u64, bus::Error> {
    match range.placement {
        Placement::Fixed(base) if range.space == space => Ok(base),
        _ => Err(bus::Error::InvalidRange),
    }
}

#[cfg(test)]
mod tests;
