use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;

use super::*;
use crate::{AddressSpace, Bus, Mmio};

const SIZES: [Size; 4] = [Size::B1, Size::B2, Size::B4, Size::B8];

/// Answers with its number and the offset, and remembers the last write.
struct Numbered(u64, Mutex<Option<(Access, u64)>>);

impl Numbered {
    fn new(number: u64) -> Arc<Self> {
        Arc::new(Self(number, Mutex::new(None)))
    }
}

impl Mmio for Numbered {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok(self.0 << 32 | at.offset << 8 | at.size.bytes())
    }

    fn write(&self, at: Access, value: u64) -> Result<Effect, BusFault> {
        *self.1.lock().unwrap() = Some((at, value));
        Ok(Effect::None)
    }
}

/// Refuses everything in the same way.
struct Refuses(BusFault);

impl Mmio for Refuses {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        Err(self.0)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Err(self.0)
    }
}

#[test]
fn devices_get_offsets_widths_and_values() {
    let bus = Bus::new(AddressSpace::Mmio);
    let device = Numbered::new(3);
    bus.insert(0x1000, 0x10, "dev", device.clone()).unwrap();
    let mut cursor = bus.cursor();
    for size in SIZES {
        assert_eq!(cursor.read(0x1008, size), Ok(3 << 32 | 8 << 8 | size.bytes()));
        assert_eq!(cursor.write(0x1004, size, 0xabc), Ok(Effect::None));
        assert_eq!(*device.1.lock().unwrap(), Some((Access { offset: 4, size }, 0xabc)));
    }
    assert_eq!(*cursor.faults(), FaultCounts::default());
}

#[test]
fn accesses_that_leave_their_range_cross_even_into_another() {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(0x1000, 6, "first", Numbered::new(1)).unwrap();
    bus.insert(0x1006, 8, "second", Numbered::new(2)).unwrap();
    let mut cursor = bus.cursor();
    for size in SIZES {
        for addr in 0x0ff0..0x1020 {
            let ends_in = |base, len| addr >= base && addr + size.bytes() <= base + len;
            let expected = if ends_in(0x1000, 6) || ends_in(0x1006, 8) {
                None
            } else if (0x1000..0x100e).contains(&addr) {
                Some(BusFault::Crosses)
            } else {
                Some(BusFault::Unmapped)
            };
            assert_eq!(cursor.read(addr, size).err(), expected, "{addr:#x} {size:?}");
            assert_eq!(cursor.write(addr, size, 0).err(), expected, "{addr:#x} {size:?}");
        }
    }
}

#[test]
fn the_end_of_the_address_space() {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(u64::MAX - 3, 4, "end", Numbered::new(1)).unwrap();
    let mut cursor = bus.cursor();
    assert_eq!(cursor.read(u64::MAX, Size::B1), Ok(1 << 32 | 3 << 8 | 1));
    assert_eq!(cursor.read(u64::MAX - 3, Size::B4), Ok(1 << 32 | 4));
    assert_eq!(cursor.read(u64::MAX - 3, Size::B8), Err(BusFault::Crosses));
    assert_eq!(cursor.read(u64::MAX, Size::B8), Err(BusFault::Crosses));
    assert_eq!(cursor.read(u64::MAX - 4, Size::B8), Err(BusFault::Unmapped));
    assert_eq!(cursor.read(0, Size::B8), Err(BusFault::Unmapped));

    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(1, u64::MAX, "all but one", Numbered::new(1)).unwrap();
    let mut cursor = bus.cursor();
    assert_eq!(cursor.read(u64::MAX - 6, Size::B8), Err(BusFault::Crosses));
    assert!(cursor.read(u64::MAX - 7, Size::B8).is_ok());
    assert_eq!(cursor.read(0, Size::B1), Err(BusFault::Unmapped));
}

#[test]
fn faults_are_counted_by_kind_and_cursor() {
    use BusFault::*;
    let bus = Bus::new(AddressSpace::Mmio);
    for (index, fault) in [Unmapped, Width, Alignment, ReadOnly, WriteOnly, Crosses].into_iter().enumerate() {
        bus.insert(index as u64 * 8, 8, "refuses", Arc::new(Refuses(fault))).unwrap();
    }
    let mut cursor = bus.cursor();
    for index in 0..6 {
        for _ in 0..=index {
            cursor.read(index * 8, Size::B1).unwrap_err();
        }
        cursor.write(index * 8, Size::B1, 0).unwrap_err();
    }
    cursor.read(0x1000, Size::B1).unwrap_err();
    cursor.read(7, Size::B2).unwrap_err();
    let expected =
        FaultCounts { unmapped: 3, width: 3, alignment: 4, read_only: 5, write_only: 6, crosses: 8 };
    assert_eq!(*cursor.faults(), expected);
    assert_eq!(*bus.cursor().faults(), FaultCounts::default());
}

#[derive(Clone, Debug)]
enum Step {
    Insert(u64, u64),
    Remove(u64),
    Replace(u64),
    Relocate(u64, u64),
    Access(u64, Size),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    // A small space, so that ranges collide, and its end, so that sums wrap.
    let addr = prop_oneof![0u64..64, (u64::MAX - 20)..=u64::MAX];
    let step = prop_oneof![
        2 => (addr.clone(), prop_oneof![0u64..12, Just(u64::MAX)]).prop_map(|(base, size)| Step::Insert(base, size)),
        1 => addr.clone().prop_map(Step::Remove),
        1 => addr.clone().prop_map(Step::Replace),
        2 => (addr.clone(), addr.clone()).prop_map(|(from, to)| Step::Relocate(from, to)),
        4 => (addr, prop::sample::select(SIZES.to_vec())).prop_map(|(addr, size)| Step::Access(addr, size)),
    ];
    prop::collection::vec(step, 1..80)
}

/// Base to size and number.
type Model = BTreeMap<u64, (u64, u64)>;

/// With sums that cannot wrap.
fn is_free(model: &Model, base: u64, size: u64) -> bool {
    let end = u128::from(base) + u128::from(size);
    let is_beside = |(&other, &(len, _)): (&u64, &(u64, u64))| {
        end <= other.into() || u128::from(base) >= u128::from(other) + u128::from(len)
    };
    end <= 1 << 64 && model.iter().all(is_beside)
}

proptest! {
    #[test]
    fn the_bus_is_a_map_from_each_address_to_its_range(steps in steps()) {
        let bus = Bus::new(AddressSpace::Mmio);
        let (mut first, mut second) = (bus.cursor(), bus.cursor());
        let mut model = Model::new();
        let mut retired = Vec::new();
        for (number, step) in steps.into_iter().enumerate() {
            let number = number as u64;
            match step {
                Step::Insert(base, size) => {
                    let free = size != 0 && is_free(&model, base, size);
                    prop_assert_eq!(bus.insert(base, size, "dev", Numbered::new(number)).is_ok(), free);
                    if free {
                        model.insert(base, (size, number));
                    }
                }
                // Ranges are few among addresses: the one at or below is meant, if there is one.
                Step::Replace(base) => {
                    let base = model.range(..=base).next_back().map_or(base, |(base, _)| *base);
                    let replaced = bus.replace(base, Numbered::new(number));
                    let entry = model.get_mut(&base);
                    prop_assert_eq!(replaced.is_ok(), entry.is_some());
                    if let Some((_, old)) = entry {
                        *old = number;
                    }
                    retired.extend(replaced);
                }
                Step::Relocate(from, to) => {
                    let from = model.range(..=from).next_back().map_or(from, |(base, _)| *base);
                    let moved = model.remove(&from);
                    let free = moved.is_some_and(|(size, _)| is_free(&model, to, size));
                    prop_assert_eq!(bus.relocate(from, to).is_ok(), free);
                    if let Some(moved) = moved {
                        model.insert(if free { to } else { from }, moved);
                    }
                }
                Step::Remove(base) => {
                    let removed = bus.remove(base);
                    prop_assert_eq!(removed.is_ok(), model.remove(&base).is_some());
                    retired.extend(removed);
                }
                Step::Access(addr, size) => {
                    let found = model.iter().find(|&(&base, &(len, _))| addr >= base && addr - base < len);
                    let expected = match found {
                        None => Err(BusFault::Unmapped),
                        Some((&base, &(len, _))) if len - (addr - base) < size.bytes() => Err(BusFault::Crosses),
                        Some((&base, &(_, number))) => Ok(number << 32 | (addr - base) << 8 | size.bytes()),
                    };
                    prop_assert_eq!(first.read(addr, size), expected);
                    if number.is_multiple_of(3) {
                        prop_assert_eq!(second.read(addr, size), expected);
                    }
                }
            }
        }
        first.sync();
        second.sync();
        for device in retired {
            prop_assert_eq!(Arc::strong_count(&device.into_device().unwrap()), 1);
        }
    }
}
