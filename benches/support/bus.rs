//! Buses with many devices, and an endless series of accesses to them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, RwLock};

use ossature::bus::{Access, AddressSpace, Bus, BusCursor, BusFault, Effect, Mmio, Size};
use vm_device::bus::{MmioAddress, MmioAddressOffset};
use vm_device::device_manager::{IoManager, MmioManager};
use vm_device::resources::Resource;
use vm_device::{DeviceMmio, MutDeviceMmio};

/// Where the first device is, and how far they are apart.
const BASE: u64 = 0xd000_0000;
const STRIDE: u64 = 0x1000;

/// A device with the least to do: a read gives its number.
pub struct Number(pub u64);

impl Mmio for Number {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok(self.0 + at.offset)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

impl DeviceMmio for Number {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.copy_from_slice(&(self.0 + offset).to_le_bytes()[..data.len()]);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

/// One thread's access to a bus.
pub trait Dispatch: Send {
    /// Reads 32 bits.
    fn read(&mut self, addr: u64) -> u64;
}

/// Addresses of registers.
pub struct Addresses {
    devices: u64,
    next: u64,
    /// How far the next device is: 0 stays, and is what guests mostly do.
    step: u64,
}

impl Addresses {
    pub fn new(devices: u64, step: u64) -> Self {
        Self { devices, next: devices / 2, step }
    }

    #[inline]
    pub fn next(&mut self) -> u64 {
        self.next = (self.next + self.step) % self.devices;
        BASE + self.next * STRIDE + 0x70
    }
}

/// Ours.
pub fn ours(devices: u64) -> Bus {
    let bus = Bus::new(AddressSpace::Mmio);
    for n in 0..devices {
        bus.insert(BASE + n * STRIDE, STRIDE, "device", Arc::new(Number(n))).unwrap();
    }
    bus
}

impl Dispatch for BusCursor {
    #[inline]
    fn read(&mut self, addr: u64) -> u64 {
        BusCursor::read(self, addr, Size::B4).unwrap()
    }
}

/// What makes each thread's access to one bus.
pub fn cursors(devices: u64) -> impl Fn() -> BusCursor + Sync {
    let bus = ours(devices);
    move || bus.cursor()
}

/// vm-device's manager in a mutex, as rust-vmm's reference VMM has it.
pub fn managers(devices: u64) -> impl Fn() -> Manager + Sync {
    let mut manager = IoManager::new();
    for n in 0..devices {
        let range = Resource::MmioAddressRange { base: BASE + n * STRIDE, size: STRIDE };
        manager.register_mmio_resources(Arc::new(Number(n)), &[range]).unwrap();
    }
    let shared = Arc::new(Mutex::new(manager));
    move || Manager(shared.clone())
}

pub struct Manager(Arc<Mutex<IoManager>>);

impl Dispatch for Manager {
    #[inline]
    fn read(&mut self, addr: u64) -> u64 {
        let mut data = [0; 4];
        self.0.lock().unwrap().mmio_read(MmioAddress(addr), &mut data).unwrap();
        u32::from_le_bytes(data).into()
    }
}

type Map = BTreeMap<u64, (u64, Arc<Mutex<dyn MutDeviceMmio + Send>>)>;

/// A map in a read-write lock with a mutex around each device, as several VMMs have it.
pub fn maps(devices: u64) -> impl Fn() -> Locked + Sync {
    let entry = |n| (BASE + n * STRIDE, (STRIDE, Arc::new(Mutex::new(Mutable(n))) as _));
    let shared = Arc::new(RwLock::new((0..devices).map(entry).collect::<Map>()));
    move || Locked(shared.clone())
}

struct Mutable(u64);

impl MutDeviceMmio for Mutable {
    fn mmio_read(&mut self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.copy_from_slice(&(self.0 + offset).to_le_bytes()[..data.len()]);
    }

    fn mmio_write(&mut self, _: MmioAddress, _: MmioAddressOffset, _: &[u8]) {}
}

pub struct Locked(Arc<RwLock<Map>>);

impl Dispatch for Locked {
    #[inline]
    fn read(&mut self, addr: u64) -> u64 {
        let mut data = [0; 4];
        let found = {
            let map = self.0.read().unwrap();
            let (base, (size, device)) = map.range(..=addr).next_back().unwrap();
            assert!(addr - base < *size);
            (*base, device.clone())
        };
        found.1.lock().unwrap().mmio_read(MmioAddress(found.0), addr - found.0, &mut data);
        u32::from_le_bytes(data).into()
    }
}
