use std::sync::Arc;

use super::*;

const SIZES: [Size; 4] = [Size::B1, Size::B2, Size::B4, Size::B8];

#[test]
fn widths_are_those_of_registers() {
    for size in SIZES {
        assert_eq!(Size::from_len(size.bytes() as usize), Some(size));
        assert_eq!(u128::from(size.mask()) + 1, 1 << (8 * size.bytes()));
    }
    for len in [0, 3, 5, 6, 7, 9, 16, usize::MAX] {
        assert_eq!(Size::from_len(len), None);
    }
}

/// Panics when written, with its lock held.
struct Fragile(u64);

impl MmioMut for Fragile {
    fn read(&mut self, _: Access) -> Result<u64, BusFault> {
        self.0 += 1;
        Ok(self.0)
    }

    fn write(&mut self, _: Access, _: u64) -> Result<Effect, BusFault> {
        panic!("a bug in a device")
    }
}

#[test]
fn a_device_that_panicked_does_not_take_other_vcpus_with_it() {
    let device = Arc::new(Mutex::new(Fragile(0)));
    let at = Access { offset: 0, size: Size::B1 };
    assert_eq!(Mmio::read(&*device, at), Ok(1));
    let writer = device.clone();
    assert!(std::thread::spawn(move || Mmio::write(&*writer, at, 0)).join().is_err());
    assert_eq!(Mmio::read(&*device, at), Ok(2));
}
