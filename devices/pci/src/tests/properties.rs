//! Whatever a guest writes where, in whatever order.

use proptest::prelude::*;

use super::*;

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![Just(Size::B1), Just(Size::B2), Just(Size::B4), Just(Size::B8)]
}

/// Where there is something, or where there is not.
fn offset(len: u64) -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..len, 1 => any::<u64>()]
}

/// An access to ECAM of slot 1, to the ports, to the hotplug registers, or to BAR 0.
fn write() -> impl Strategy<Value = (u8, u64, Size, u64)> {
    let value =
        prop_oneof![any::<u64>(), Just(u64::MAX), Just(0), Just(LOW), (0..16u64).prop_map(|bit| 1 << bit)];
    (0..4u8, offset(0x120), size(), value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn accesses_never_panic_and_read_only_bits_stay(writes in proptest::collection::vec(write(), 1..200)) {
        let host = Host::started();
        let sample = Plugged::new(&host, sample(5));
        let constant = |host: &Host| {
            [0u64, 8, 0x2c, 0x34, 0x40, 0x44, 0x48].map(|offset| {
                let mask = if offset == 0x40 { 0x3fff_ffff } else { 0xffff_ffff };
                host.bus.read(1, 0, offset as u16, Size::B4) & mask
            })
        };
        let before = constant(&host);
        for (place, offset, size, value) in writes {
            let (port, offset) = match place {
                0 => (host.port("ecam"), offset.wrapping_add(0x8000)),
                1 => (host.port("config"), offset % 10),
                2 => (host.port("hotplug"), offset % 18),
                _ => (sample.bar0(), if offset < 0x120 { offset + 0x7fe0 } else { offset }),
            };
            let at = Access { offset, size };
            let _ = port.read(at);
            if let Ok(effect) = port.write(at, value) {
                sample.board.carry_out(effect);
            }
            for (bar, size) in [(0, 0x10000), (1, 0x1000)] {
                if let Some(base) = sample.base(bar) {
                    let windows = [(LOW, 256 << 20), (HIGH, 64 << 30)];
                    let inside = |&(start, len): &(u64, u64)| base >= start && base + size <= start + len;
                    prop_assert!(windows.iter().any(inside) && base % size == 0, "{base:#x}");
                }
            }
            if host.bus.present() == 0 {
                // It has been ejected: all is over.
                prop_assert_eq!(host.read(1, 0, Size::B4), 0xffff_ffff);
                return Ok(());
            }
            prop_assert_eq!(constant(&host), before);
        }
        // Still a function that a guest finds its way with, and whose state is one.
        sample.write(&host, BAR0 + 12, Size::B4, 0xffff_ffff);
        prop_assert_eq!(sample.read(&host, BAR0 + 12, Size::B4), 0xffff_f000);
        let state = sample.function.save().unwrap();
        prop_assert!(sample.function.check(&state).is_ok());
    }
}

/// vCPUs write wherever they like while the device signals and the machine takes other functions in and out.
#[test]
fn vcpus_devices_and_the_machine_meet_without_deadlock() {
    const ROUNDS: u64 = 2000;
    let host = Host::started();
    let sample = Plugged::new(&host, sample(5));
    let (ecam, hotplug, bar) = (host.port("ecam"), host.port("hotplug"), sample.bar0());
    let vectors = sample.vectors.clone().unwrap();
    let bus = host.bus.clone();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS {
                for (offset, value) in [(0x04, round & 7), (0x10, LOW), (0x1c, LOW + round % 2 * 0x1000)] {
                    let at = Access { offset: 0x8000 + offset, size: Size::B4 };
                    sample.board.carry_out(ecam.write(at, value).unwrap());
                }
                let control = Access { offset: 0x8000 + 0x42, size: Size::B2 };
                let _ = ecam.write(control, (round & 3) << 14).unwrap();
            }
        });
        scope.spawn(|| {
            for round in 0..ROUNDS {
                let at = Access { offset: 0x8000 + 4 * (round % 20), size: Size::B4 };
                let _ = bar.write(at, round);
                let _ = bar.read(Access { offset: 0x1000, size: Size::B8 });
            }
        });
        scope.spawn(|| {
            for round in 0..ROUNDS {
                vectors.interrupt((round % 5) as u16).unwrap().signal().unwrap();
            }
        });
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                for offset in [0, 4, 12] {
                    let _ = hotplug.read(Access { offset, size: Size::B4 }).unwrap();
                }
                let _ = hotplug.write(Access { offset: 8, size: Size::B4 }, 1 << 9).unwrap();
            }
        });
        for _ in 0..200 {
            let mut other = Function::new("other", &bus, info());
            // Until the other thread has ejected the one before, the slot waits.
            while other.slot().is_none() {
                let mut board = TestBoard::default();
                let assigned = board.assign(&other.requires());
                other = Function::new("other", &bus, info()).at(9);
                if other.attach(&assigned, |_| Ok(Vec::new())).is_err() {
                    let _ = bus.eject(1 << 9);
                }
            }
            other.resume().unwrap();
            let _ = bus.request_removal("other");
        }
    });
    assert!(sample.function.check(&sample.function.save().unwrap()).is_ok());
}
