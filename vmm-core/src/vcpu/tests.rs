use std::sync::{Arc, Mutex};

use ossature_bus::{Access, AddressSpace, Bus, Mmio, VmRequest};
use proptest::prelude::*;

use super::*;

/// Remembers writes; a read gives bytes that count up from the address.
#[derive(Default)]
struct Log(Mutex<Vec<(u64, Size, u64)>>);

impl Mmio for Log {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok((0..at.size.bytes()).rev().fold(0, |value, n| value << 8 | (at.offset + n) & 0xff))
    }
    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let mut log = self.0.lock().unwrap();
        log.push((at.offset, at.size, value));
        Ok(match log.len() {
            2 => Effect::Vm(VmRequest::Reset),
            3 => Effect::Vm(VmRequest::Shutdown),
            _ => Effect::None,
        })
    }
}

fn buses() -> (Buses, Arc<Log>) {
    let log = Arc::new(Log::default());
    let (pio, mmio) = (Bus::new(AddressSpace::Pio), Bus::new(AddressSpace::Mmio));
    pio.insert(0, 0x1_0000, "log", log.clone()).unwrap();
    mmio.insert(0, 1 << 40, "log", log.clone()).unwrap();
    (Buses::new(pio.cursor(), mmio.cursor()), log)
}

#[test]
fn string_io_is_single_accesses_of_the_instructions_width() {
    let (mut buses, log) = buses();
    let effect = buses.write_ports(0x10, Size::B2, &[1, 2, 3, 4, 5, 6]);
    assert_eq!(
        *log.0.lock().unwrap(),
        [(0x10, Size::B2, 0x201), (0x10, Size::B2, 0x403), (0x10, Size::B2, 0x605)]
    );
    assert_eq!(effect, Effect::Vm(VmRequest::Reset), "the first effect");
    assert_eq!(buses.due, [Effect::Vm(VmRequest::Shutdown)], "none is lost");
    let mut data = [0; 8];
    buses.read_ports(0x10, Size::B4, &mut data);
    assert_eq!(data, [0x10, 0x11, 0x12, 0x13, 0x10, 0x11, 0x12, 0x13]);
}

#[test]
fn memory_accesses_of_odd_widths_are_split() {
    let (mut buses, log) = buses();
    let _ = buses.write_memory(0x1000, &[1, 2, 3, 4, 5, 6, 7]);
    let pieces = [(0x1000, Size::B4, 0x0403_0201), (0x1004, Size::B2, 0x0605), (0x1006, Size::B1, 7)];
    assert_eq!(*log.0.lock().unwrap(), pieces);
}

proptest! {
    #[test]
    fn each_byte_goes_to_its_place(address in 0u64..1 << 39, data in proptest::collection::vec(any::<u8>(), 1..=8)) {
        let (mut buses, log) = buses();
        let _ = buses.write_memory(address, &data);
        let mut written = Vec::new();
        for (at, size, value) in log.0.lock().unwrap().iter() {
            prop_assert_eq!(*at, address + written.len() as u64);
            written.extend_from_slice(&value.to_le_bytes()[..*size as usize]);
        }
        prop_assert_eq!(&written, &data);

        let mut read = vec![0; data.len()];
        buses.read_memory(address, &mut read);
        let expected: Vec<_> = (0..data.len() as u64).map(|n| (address + n) as u8).collect();
        prop_assert_eq!(read, expected);
    }
}
