//! Every interleaving of a vCPU that dispatches and a thread that edits the bus.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use loom::thread;

use super::*;
use crate::{Access, BusFault, Effect, Mmio, Size};

/// Answers with its number. Nobody may ask it, or hold it, once it is unplugged.
struct Numbered {
    number: u64,
    unplugged: AtomicBool,
}

impl Mmio for Numbered {
    fn read(&self, _: Access) -> Result<u64, BusFault> {
        assert!(!self.unplugged.load(Ordering::Relaxed), "asked after it was unplugged");
        thread::yield_now();
        assert!(!self.unplugged.load(Ordering::Relaxed), "unplugged while it was asked");
        Ok(self.number)
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

fn device(number: u64) -> Arc<Numbered> {
    Arc::new(Numbered { number, unplugged: AtomicBool::new(false) })
}

const NOBODY: Result<u64, BusFault> = Err(BusFault::Unmapped);
const OLD: u64 = 0x10;
const NEW: u64 = 0x40;
const OTHER: u64 = 0x80;

/// A bus with the device 1 at `OLD` and the device 9 at `OTHER`.
fn bus() -> (Bus, Arc<Numbered>) {
    let bus = Bus::new(AddressSpace::Mmio);
    let old = device(1);
    bus.insert(OLD, 0x10, "old", old.clone()).unwrap();
    bus.insert(OTHER, 0x10, "other", device(9)).unwrap();
    (bus, old)
}

/// A vCPU that reads at these addresses, in turn.
fn vcpu<const N: usize>(bus: &Bus, addresses: [u64; N]) -> thread::JoinHandle<[Result<u64, BusFault>; N]> {
    let mut cursor = bus.cursor();
    thread::spawn(move || addresses.map(|addr| cursor.read(addr, Size::B4)))
}

/// Waits until nobody can reach the device, and marks it.
fn unplug(retired: Retired, old: &Arc<Numbered>) {
    retired.wait();
    old.unplugged.store(true, Ordering::Relaxed);
    drop(retired.into_device().unwrap());
    assert_eq!(Arc::strong_count(old), 1, "the bus still holds the device");
}

fn model(f: impl Fn() + Sync + Send + 'static) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(f);
}

#[test]
fn loom_a_device_that_is_inserted_answers_from_some_access_on() {
    model(|| {
        let (bus, _old) = bus();
        let vcpu = vcpu(&bus, [NEW, OTHER, NEW]);
        bus.insert(NEW, 0x10, "new", device(2)).unwrap();
        let [first, other, second] = vcpu.join().unwrap();
        assert_eq!(other, Ok(9));
        let possible = [[NOBODY, NOBODY], [NOBODY, Ok(2)], [Ok(2), Ok(2)]];
        assert!(possible.contains(&[first, second]), "{first:?} {second:?}");
    });
}

#[test]
fn loom_a_device_that_is_removed_is_unused_once_passed() {
    model(|| {
        let (bus, old) = bus();
        let vcpu = vcpu(&bus, [OLD, OTHER, OLD]);
        unplug(bus.remove(OLD).unwrap(), &old);
        let [first, other, second] = vcpu.join().unwrap();
        assert_eq!(other, Ok(9));
        let possible = [[Ok(1), Ok(1)], [Ok(1), NOBODY], [NOBODY, NOBODY]];
        assert!(possible.contains(&[first, second]), "{first:?} {second:?}");
    });
}

#[test]
fn loom_an_access_finds_the_replaced_device_or_the_new_one() {
    model(|| {
        let (bus, old) = bus();
        let vcpu = vcpu(&bus, [OLD, OTHER, OLD]);
        unplug(bus.replace(OLD, device(2)).unwrap(), &old);
        let [first, other, second] = vcpu.join().unwrap();
        assert_eq!(other, Ok(9));
        let possible = [[Ok(1), Ok(1)], [Ok(1), Ok(2)], [Ok(2), Ok(2)]];
        assert!(possible.contains(&[first, second]), "{first:?} {second:?}");
    });
}

#[test]
fn loom_devices_that_are_replaced_at_once_are_seen_at_once() {
    model(|| {
        let (bus, old) = bus();
        let vcpu = vcpu(&bus, [OLD, OTHER, OLD]);
        let mut retired = bus.replace_all([(OLD, device(2) as _), (OTHER, device(8) as _)]).unwrap();
        unplug(retired.swap_remove(0), &old);
        let seen = vcpu.join().unwrap().map(Result::unwrap);
        let possible = [[1, 9, 1], [1, 9, 2], [1, 8, 2], [2, 8, 2]];
        assert!(possible.contains(&seen), "{seen:?}");
    });
}

#[test]
fn loom_a_range_that_moves_is_at_the_old_place_or_at_the_new_one() {
    model(|| {
        let (bus, _old) = bus();
        let vcpu = vcpu(&bus, [OLD, NEW, OLD]);
        bus.relocate(OLD, NEW).unwrap();
        let seen = vcpu.join().unwrap();
        let possible = [
            [Ok(1), NOBODY, Ok(1)],
            [Ok(1), NOBODY, NOBODY],
            [Ok(1), Ok(1), NOBODY],
            [NOBODY, Ok(1), NOBODY],
        ];
        assert!(possible.contains(&seen), "{seen:?}");
    });
}

#[test]
fn loom_two_threads_that_edit_lose_no_edit() {
    model(|| {
        let (bus, old) = bus();
        let other = bus.clone();
        let editor = thread::spawn(move || {
            other.insert(NEW, 0x10, "new", device(2)).unwrap();
        });
        unplug(bus.replace(OLD, device(3)).unwrap(), &old);
        editor.join().unwrap();
        let mut cursor = bus.cursor();
        assert_eq!([OLD, NEW, OTHER].map(|addr| cursor.read(addr, Size::B4)), [Ok(3), Ok(2), Ok(9)]);
    });
}
