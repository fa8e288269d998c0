use std::sync::Mutex;

use ossature_bus::{Bus, MmioMut, VmRequest};
use proptest::prelude::*;

use super::device_manager::{IoManager, MmioManager, PioManager};
use super::*;

/// Remembers the last access; reads answer its bytes, shorter than asked by one.
#[derive(Default)]
struct Foreign {
    base: u64,
    offset: u64,
    data: Vec<u8>,
}

impl Foreign {
    fn read(&mut self, base: u64, offset: u64, data: &mut [u8]) {
        (self.base, self.offset) = (base, offset);
        let len = data.len();
        data.iter_mut().take(len.max(2) - 1).zip(1..).for_each(|(byte, value)| *byte = value);
    }

    fn write(&mut self, base: u64, offset: u64, data: &[u8]) {
        (self.base, self.offset, self.data) = (base, offset, data.to_vec());
    }
}

impl MutDeviceMmio for Foreign {
    fn mmio_read(&mut self, base: MmioAddress, offset: u64, data: &mut [u8]) {
        self.read(base.0, offset, data);
    }

    fn mmio_write(&mut self, base: MmioAddress, offset: u64, data: &[u8]) {
        self.write(base.0, offset, data);
    }
}

impl MutDevicePio for Foreign {
    fn pio_read(&mut self, base: PioAddress, offset: u16, data: &mut [u8]) {
        self.read(base.0.into(), offset.into(), data);
    }

    fn pio_write(&mut self, base: PioAddress, offset: u16, data: &[u8]) {
        self.write(base.0.into(), offset.into(), data);
    }
}

#[test]
fn foreign_devices_plug_into_our_bus() {
    let device = Arc::new(Mutex::new(Foreign::default()));
    for space in [AddressSpace::Mmio, AddressSpace::Pio] {
        let bus = Bus::new(space);
        let registers: Arc<dyn Mmio> = match space {
            AddressSpace::Mmio => Arc::new(FromMmio::new(MmioAddress(0x1000), device.clone())),
            AddressSpace::Pio => Arc::new(FromPio::new(PioAddress(0x1000), device.clone())),
        };
        bus.insert(0x1000, 0x100, "foreign", registers).unwrap();
        let mut cursor = bus.cursor();
        assert_eq!(cursor.read(0x1010, Size::B1), Ok(0x01));
        assert_eq!(cursor.read(0x1010, Size::B2), Ok(0xff01));
        assert_eq!(cursor.read(0x1010, Size::B4), Ok(0xff03_0201));
        assert_eq!(cursor.read(0x1020, Size::B8), Ok(0xff07_0605_0403_0201));
        let at = |device: &Foreign| (device.base, device.offset);
        assert_eq!(at(&device.lock().unwrap()), (0x1000, 0x20));
        assert_eq!(cursor.write(0x1030, Size::B2, 0xaabb_ccdd), Ok(Effect::None));
        assert_eq!(device.lock().unwrap().data, [0xdd, 0xcc]);
    }
}

#[test]
fn offsets_that_no_port_has_are_unmapped() {
    let port = FromPio::new(PioAddress(0), Mutex::new(Foreign::default()));
    let at = Access { offset: 0x1_0000, size: Size::B1 };
    assert_eq!(port.read(at), Err(BusFault::Unmapped));
    assert_eq!(port.write(at, 0), Err(BusFault::Unmapped));
}

/// A 32-bit register; writing 0 to it resets the machine.
struct Register(u32);

impl MmioMut for Register {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        if at.size == Size::B4 { Ok(self.0.into()) } else { Err(BusFault::Width) }
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault> {
        if at.size != Size::B4 {
            return Err(BusFault::Width);
        }
        self.0 = value as u32;
        Ok(if value == 0 { Effect::Vm(VmRequest::Reset) } else { Effect::None })
    }
}

#[test]
fn our_devices_plug_into_a_foreign_bus() {
    let effects = Arc::new(Mutex::new(Vec::new()));
    let seen = effects.clone();
    let device = Arc::new(Mutex::new(Register(7)));
    let ours = Arc::new(ToVmDevice::new(device, move |effect| seen.lock().unwrap().push(effect)));
    let mut manager = IoManager::new();
    manager.register_mmio(MmioRange::new(MmioAddress(0x1000), 4).unwrap(), ours.clone()).unwrap();
    manager.register_pio(PioRange::new(PioAddress(0x70), 4).unwrap(), ours).unwrap();

    let mut data = [0; 4];
    manager.mmio_read(MmioAddress(0x1000), &mut data).unwrap();
    assert_eq!(data, [7, 0, 0, 0]);
    manager.pio_write(PioAddress(0x70), &[1, 2, 3, 4]).unwrap();
    manager.pio_write(PioAddress(0x70), &[9, 9]).unwrap();
    manager.pio_read(PioAddress(0x70), &mut data).unwrap();
    assert_eq!(data, [1, 2, 3, 4]);
    for len in [1, 2, 3] {
        let mut data = vec![0; len];
        manager.mmio_read(MmioAddress(0x1000), &mut data).unwrap();
        assert_eq!(data, vec![0xff; len]);
    }
    assert_eq!(*effects.lock().unwrap(), []);
    manager.mmio_write(MmioAddress(0x1000), &[0; 4]).unwrap();
    assert_eq!(*effects.lock().unwrap(), [Effect::Vm(VmRequest::Reset)]);
}

#[test]
fn ranges_convert_both_ways() {
    let mmio = MmioRange::new(MmioAddress(0xd000_0000), 0x1000).unwrap();
    let request = mmio.request();
    assert_eq!(request, RegistersRequest::memory(REGISTERS, 0x1000).align(1).fixed(0xd000_0000));
    assert_eq!(request.mmio_range().unwrap().last(), mmio.last());
    assert!(request.pio_range().is_err());

    let pio = PioRange::new(PioAddress(0xfff8), 8).unwrap();
    let request = pio.request();
    assert_eq!(request.pio_range().unwrap().last(), PioAddress(0xffff));
    assert!(request.mmio_range().is_err());
    let ports = |count| RegistersRequest::ports(REGISTERS, count);
    let mut long = ports(8).fixed(0xfff8);
    long.size = 0x1_0000;
    for bad in [ports(8), ports(8).fixed(0x1_0000), ports(9).fixed(0xfff8), ports(0).fixed(0xfff8), long] {
        assert!(bad.pio_range().is_err(), "{bad:?}");
    }
}

#[test]
fn a_foreign_device_in_a_machine_says_what_it_can_do() {
    let device = Arc::new(Mutex::new(Foreign::default()));
    let range = PioRange::new(PioAddress(0x700), 4).unwrap();
    let mut plain = FromVmDevice::pio("tally", range, device.clone());
    assert_eq!(plain.id(), "tally");
    assert_eq!(plain.requires().registers, [range.request()]);
    assert!(plain.reset().is_err());
    assert!(matches!(plain.save().unwrap(), DeviceState::Unsupported { .. }));
    let handover = Handover::new(ossature_bus::state::SavedState::new("tally", 1, &b""[..]));
    assert!(matches!(plain.restore(handover), Err(StateError::Unsupported { .. })));

    let reset = device.clone();
    let mut whole =
        FromVmDevice::mmio("dev", MmioRange::new(MmioAddress(0x1000), 4).unwrap(), device.clone())
            .on_reset(move || *reset.lock().unwrap() = Foreign::default())
            .with_syscalls(&[Syscall("read")]);
    assert_eq!(whole.syscalls(), [Syscall("read")]);
    device.lock().unwrap().data = vec![1];
    whole.reset().unwrap();
    assert!(device.lock().unwrap().data.is_empty());
}

/// 64 bytes of memory, which takes accesses of any length within it.
struct Bytes([u8; 64]);

impl MutDeviceMmio for Bytes {
    fn mmio_read(&mut self, _: MmioAddress, offset: u64, data: &mut [u8]) {
        let from = offset as usize;
        data.copy_from_slice(&self.0[from..from + data.len()]);
    }

    fn mmio_write(&mut self, _: MmioAddress, offset: u64, data: &[u8]) {
        let from = offset as usize;
        self.0[from..from + data.len()].copy_from_slice(data);
    }
}

proptest! {
    /// Theirs on their bus, theirs on ours, and theirs as ours on theirs again are one memory.
    #[test]
    fn a_device_is_the_same_on_either_bus(
        accesses in prop::collection::vec((0..4_u32, 0..64_u64, any::<Option<u64>>()), 0..100),
    ) {
        let base = MmioAddress(0x1000);
        let range = MmioRange::new(base, 64).unwrap();
        let device = || Arc::new(Mutex::new(Bytes([0; 64])));
        let mut direct = IoManager::new();
        direct.register_mmio(range, device()).unwrap();
        let bus = Bus::new(AddressSpace::Mmio);
        bus.insert(base.0, 64, "bytes", Arc::new(FromMmio::new(base, device()))).unwrap();
        let mut cursor = bus.cursor();
        let mut twice = IoManager::new();
        let ours = ToVmDevice::new(Arc::new(FromMmio::new(base, device())), |_| ());
        twice.register_mmio(range, Arc::new(ours)).unwrap();
        for (log, offset, value) in accesses {
            let len = 1 << log;
            let addr = MmioAddress(base.0 + offset / len * len);
            let size = Size::from_len(len as usize).unwrap();
            if let Some(value) = value {
                let data = &value.to_le_bytes()[..len as usize];
                direct.mmio_write(addr, data).unwrap();
                twice.mmio_write(addr, data).unwrap();
                prop_assert_eq!(cursor.write(addr.0, size, value), Ok(Effect::None));
            }
            let (mut one, mut other) = ([0; 8], [0; 8]);
            direct.mmio_read(addr, &mut one[..len as usize]).unwrap();
            twice.mmio_read(addr, &mut other[..len as usize]).unwrap();
            prop_assert_eq!(one, other);
            prop_assert_eq!(cursor.read(addr.0, size), Ok(u64::from_le_bytes(one)));
        }
    }
}
