use std::sync::Arc;

use super::*;
use crate::{Access, BusFault, Effect, Mmio, Size};

/// Answers with its number and the offset.
struct Numbered(u64);

impl Mmio for Numbered {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok(self.0 << 32 | at.offset)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

fn device(number: u64) -> Arc<Numbered> {
    Arc::new(Numbered(number))
}

#[test]
fn overlaps_are_refused_with_both_owners_named() {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(0x1000, 0x100, "first", device(1)).unwrap();
    bus.insert(0x2000, 0x100, "second", device(2)).unwrap();
    for (base, size, other) in [
        (0x1000, 0x100, "first"),
        (0xfff, 2, "first"),
        (0x10ff, 1, "first"),
        (0x1010, 1, "first"),
        (0, 0x3000, "second"),
        (0x1100, 0xf01, "second"),
        (0, u64::MAX, "second"),
    ] {
        let error = bus.insert(base, size, "newcomer", device(3)).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BusError::Overlap { .. }), "{error:?}");
        assert!(text.contains("newcomer") && (text.contains(other) || text.contains("first")), "{text}");
    }
    let all = format!("{bus:?}");
    assert!(all.contains("0x1000..=0x10ff first") && !all.contains("newcomer"), "{all}");
    bus.insert(0x1100, 0xf00, "between", device(3)).unwrap();
}

#[test]
fn empty_and_wrapping_ranges_are_refused() {
    let bus = Bus::new(AddressSpace::Mmio);
    assert_eq!(bus.insert(5, 0, "dev", device(0)), Err(BusError::Empty { owner: "dev".into(), base: 5 }));
    for (base, size) in [(u64::MAX, 2), (1, u64::MAX), (u64::MAX - 6, 8)] {
        assert!(matches!(bus.insert(base, size, "dev", device(0)), Err(BusError::Beyond { .. }) | Ok(())));
    }
    let bus = Bus::new(AddressSpace::Mmio);
    assert!(matches!(
        bus.insert(2, u64::MAX, "dev", device(0)),
        Err(BusError::Beyond { last: u64::MAX, .. })
    ));
    bus.insert(1, u64::MAX, "all but one", device(0)).unwrap();
    bus.insert(0, 1, "the one", device(0)).unwrap();
}

#[test]
fn ports_end_at_ffff() {
    let bus = Bus::new(AddressSpace::Pio);
    bus.insert(0xfff8, 8, "fits", device(0)).unwrap();
    for (base, size) in [(0xfff0, 0x11), (0x10000, 1), (0, u64::MAX)] {
        let error = bus.insert(base, size, "dev", device(0)).unwrap_err();
        assert!(matches!(error, BusError::Beyond { last: 0xffff, .. }), "{error:?}");
    }
}

#[test]
fn a_list_is_registered_as_a_whole_or_not_at_all() {
    let bus = Bus::new(AddressSpace::Mmio);
    let at = |base| Registration::new(base, 16, format!("dev{base}"), device(base));
    assert_eq!(format!("{:?}", at(16)), "0x10+0x10 dev16");
    let error = bus.insert_all([at(0), at(32), at(47)]).unwrap_err();
    assert!(error.to_string().contains("dev47") && error.to_string().contains("dev32"), "{error}");
    assert_eq!(bus.cursor().read(0, Size::B1), Err(BusFault::Unmapped));
    bus.insert_all([at(32), at(0), at(16)]).unwrap();
    assert_eq!(bus.cursor().read(33, Size::B1), Ok(32 << 32 | 1));
}

#[test]
fn what_is_removed_can_be_registered_again() {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(0x10, 0x10, "one", device(1)).unwrap();
    assert_eq!(bus.remove(0x11).unwrap_err(), BusError::NotFound { base: 0x11 });
    let mut cursor = bus.cursor();
    assert_eq!(cursor.read(0x10, Size::B4), Ok(1 << 32));
    let _retired = bus.remove(0x10).unwrap();
    assert_eq!(cursor.read(0x10, Size::B4), Err(BusFault::Unmapped));
    bus.insert(0x18, 0x10, "two", device(2)).unwrap();
    assert_eq!(cursor.read(0x1a, Size::B4), Ok(2 << 32 | 2));
    assert_eq!(bus.remove(0x10).unwrap_err(), BusError::NotFound { base: 0x10 });
}

#[test]
fn the_last_reference_to_a_retired_device_is_ours() {
    let bus = Bus::new(AddressSpace::Mmio);
    let kept = device(7);
    bus.insert(0, 8, "dev", kept.clone()).unwrap();
    bus.insert(8, 8, "other", device(8)).unwrap();
    let (mut busy, mut idle, gone) = (bus.cursor(), bus.cursor(), bus.cursor());
    busy.read(0, Size::B1).unwrap();

    let retired = bus.remove(0).unwrap();
    assert!(!retired.is_passed());
    // Later changes build tables without the device; the cursors still have the old one.
    bus.insert(16, 8, "later", device(9)).unwrap();
    assert_eq!(busy.read(0, Size::B1), Err(BusFault::Unmapped));
    drop(gone);
    let retired = retired.into_device().err().unwrap();
    assert!(Arc::strong_count(&kept) > 2);
    idle.sync();
    retired.wait();
    let device = retired.into_device().unwrap();
    assert_eq!(Arc::strong_count(&kept), 2);
    drop(kept);
    assert_eq!(Arc::strong_count(&device), 1);
}

#[test]
fn without_cursors_a_device_is_ours_at_once() {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(0, 8, "dev", device(7)).unwrap();
    let retired = bus.remove(0).unwrap();
    drop(bus);
    assert_eq!(Arc::strong_count(&retired.into_device().unwrap()), 1);
}

#[test]
fn vcpus_dispatch_while_devices_come_and_go() {
    let bus = Bus::new(AddressSpace::Mmio);
    bus.insert(0x1000, 8, "stays", device(1)).unwrap();
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut cursor = bus.cursor();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    assert_eq!(cursor.read(0x1000, Size::B4), Ok(1 << 32));
                    if let Ok(value) = cursor.read(0x2004, Size::B4) {
                        assert_eq!(value, 2 << 32 | 4);
                    }
                }
            });
        }
        for _ in 0..200 {
            let plugged = device(2);
            bus.insert(0x2000, 8, "plugged", plugged.clone()).unwrap();
            let retired = bus.remove(0x2000).unwrap();
            retired.wait();
            drop(retired.into_device().unwrap());
            assert_eq!(Arc::strong_count(&plugged), 1);
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn a_replaced_device_answers_no_more_and_is_ours_once_passed() {
    let bus = Bus::new(AddressSpace::Mmio);
    let old = device(1);
    bus.insert(0x10, 0x10, "first", old.clone()).unwrap();
    bus.insert(0x20, 0x10, "second", device(2)).unwrap();
    let mut cursor = bus.cursor();
    assert_eq!(cursor.read(0x14, Size::B4), Ok(1 << 32 | 4));
    let retired = bus.replace(0x10, device(3)).unwrap();
    let retired = retired.into_device().err().unwrap();
    assert_eq!(cursor.read(0x14, Size::B4), Ok(3 << 32 | 4));
    assert_eq!(cursor.read(0x24, Size::B4), Ok(2 << 32 | 4));
    drop(retired.into_device().unwrap());
    assert_eq!(Arc::strong_count(&old), 1);
    assert_eq!(bus.replace(0x11, device(4)).unwrap_err(), BusError::NotFound { base: 0x11 });
    assert!(format!("{bus:?}").contains("0x10..=0x1f first"), "{bus:?}");
}

#[test]
fn several_devices_are_replaced_at_once_or_none() {
    let bus = Bus::new(AddressSpace::Mmio);
    for number in [1, 2, 3] {
        bus.insert(number * 0x10, 0x10, "dev", device(number)).unwrap();
    }
    let read = || [0x10, 0x20, 0x30].map(|addr| bus.cursor().read(addr, Size::B4).unwrap() >> 32);
    let refused = bus.replace_all([(0x10, device(4) as _), (0x18, device(5) as _)]).unwrap_err();
    assert_eq!(refused, BusError::NotFound { base: 0x18 });
    assert_eq!(read(), [1, 2, 3]);
    let retired = bus.replace_all([(0x30, device(6) as _), (0x10, device(4) as _)]).unwrap();
    assert_eq!(read(), [4, 2, 6]);
    let numbers = retired.into_iter().map(|retired| {
        let device = retired.into_device().unwrap();
        assert_eq!(Arc::strong_count(&device), 1);
        device.read(Access { offset: 0, size: Size::B4 }).unwrap() >> 32
    });
    assert_eq!(numbers.collect::<Vec<_>>(), [3, 1]);
}

#[test]
fn a_range_moves_also_over_itself_and_never_over_another() {
    let bus = Bus::new(AddressSpace::Pio);
    bus.insert(0x10, 0x10, "moves", device(1)).unwrap();
    bus.insert(0x40, 0x10, "stays", device(2)).unwrap();
    let mut cursor = bus.cursor();
    let mut at = |addr| cursor.read(addr, Size::B1);
    assert_eq!(at(0x18), Ok(1 << 32 | 8));
    bus.relocate(0x10, 0x18).unwrap();
    assert_eq!([at(0x10), at(0x17)], [Err(BusFault::Unmapped); 2]);
    assert_eq!([at(0x18), at(0x27)], [Ok(1 << 32), Ok(1 << 32 | 15)]);
    for (to, is_overlap) in [(0x31, true), (0x4f, true), (0x40, true), (0xfff8, false), (u64::MAX, false)] {
        let before = format!("{bus:?}");
        let refused = bus.relocate(0x18, to).unwrap_err();
        assert!(
            match &refused {
                BusError::Overlap { owner, other, .. } => is_overlap && owner == "moves" && other == "stays",
                BusError::Beyond { owner, last: 0xffff, .. } => !is_overlap && owner == "moves",
                _ => false,
            },
            "{refused:?}"
        );
        assert_eq!(format!("{bus:?}"), before);
        assert_eq!(at(0x18), Ok(1 << 32));
    }
    assert_eq!(bus.relocate(0x10, 0x80).unwrap_err(), BusError::NotFound { base: 0x10 });
    bus.relocate(0x18, 0x18).unwrap();
    bus.relocate(0x18, 0x50).unwrap();
    assert_eq!([at(0x18), at(0x5f)], [Err(BusFault::Unmapped), Ok(1 << 32 | 15)]);
}
