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
