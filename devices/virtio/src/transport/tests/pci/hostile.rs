//! Accesses that no driver makes.

use proptest::prelude::*;

use super::*;

#[test]
fn a5_registers_of_queues_and_vectors_that_do_not_exist() {
    let (_, rig) = sample_rig();
    rig.enable_msix(4);
    rig.negotiate(RING_RESET);
    let mut ring = rig.set_up(0, 16, 1);
    rig.go();
    for queue in [3, 4, 255, 256, 0x7fff, 0xffff] {
        rig.set(SELECT, Size::B2, queue);
        assert_eq!(rig.get(SELECT, Size::B2), queue);
        for (offset, size) in
            [(SIZE, Size::B2), (VECTOR, Size::B2), (ENABLE, Size::B2), (RESET, Size::B2), (32, Size::B8)]
        {
            for value in [0, 1, 2, 0xffff] {
                rig.set(offset, size, value);
            }
        }
        assert_eq!([SIZE, ENABLE, 30, RESET].map(|at| rig.get(at, Size::B2)), [0; 4]);
        assert_eq!((rig.get(VECTOR, Size::B2), rig.get(32, Size::B8)), (NO_VECTOR, 0));
    }
    rig.set(SELECT, Size::B2, 0);
    for vector in [4, 5, 255, 2047, 2048, 0xfffe] {
        rig.set(VECTOR, Size::B2, vector);
        assert_eq!(rig.get(VECTOR, Size::B2), NO_VECTOR, "{vector}");
        rig.set(16, Size::B2, vector);
        assert_eq!(rig.get(16, Size::B2), NO_VECTOR, "{vector}");
        rig.set(VECTOR, Size::B2, 1);
        assert_eq!(rig.get(VECTOR, Size::B2), 1);
    }
    let _ = rig.all_sent();
    rig.request(0, &mut ring);
    assert_eq!(rig.sent(1), Some(0x41));
}

#[test]
fn a7_notifications_of_queues_that_do_not_exist() {
    let (_, rig) = sample_rig();
    let port = rig.port();
    for offset in [12, 16, 0xffc, 0x1ffc] {
        let at = Access { offset: NOTIFY + offset, size: Size::B2 };
        assert_eq!(port.write(at, 0), Err(BusFault::Unmapped), "{offset:#x}");
    }
    let write = |offset, size| port.write(Access { offset: NOTIFY + offset, size }, 0);
    assert_eq!(write(2, Size::B2), Err(BusFault::Alignment));
    assert_eq!(port.read(Access { offset: NOTIFY, size: Size::B2 }), Err(BusFault::WriteOnly));
    for queue in 0..3u16 {
        assert_eq!(rig.board.doorbell(("kick", queue)).unwrap().take().unwrap(), 0);
    }
}

#[test]
fn registers_have_one_width_when_they_are_written() {
    let (_, rig) = sample_rig();
    let port = rig.port();
    let fields = [
        (0, Size::B4),
        (8, Size::B4),
        (12, Size::B4),
        (16, Size::B2),
        (20, Size::B1),
        (22, Size::B2),
        (24, Size::B2),
        (26, Size::B2),
        (28, Size::B2),
        (58, Size::B2),
        (32, Size::B4),
        (36, Size::B4),
        (32, Size::B8),
        (40, Size::B4),
        (44, Size::B4),
        (40, Size::B8),
        (48, Size::B4),
        (52, Size::B4),
        (48, Size::B8),
    ];
    for offset in 0..0x80 {
        for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
            let at = Access { offset, size };
            let written = port.write(at, 0).is_ok();
            assert_eq!(written, fields.contains(&(offset, size)), "{at:?}");
            let inside = offset % size.bytes() == 0 && offset + size.bytes() <= 60;
            assert_eq!(port.read(at).is_ok(), inside, "{at:?}");
        }
    }
    let refused = |offset, size| port.write(Access { offset, size }, 1).unwrap_err();
    assert_eq!(refused(4, Size::B4), BusFault::ReadOnly);
    assert_eq!(refused(18, Size::B2), BusFault::ReadOnly);
    assert_eq!(refused(ISR, Size::B1), BusFault::ReadOnly);
    assert_eq!(port.read(Access { offset: ISR, size: Size::B4 }), Err(BusFault::Width));
    assert_eq!(port.read(Access { offset: CONFIG + 4, size: Size::B4 }), Err(BusFault::Crosses));
    assert_eq!(port.read(Access { offset: CONFIG + 6, size: Size::B1 }), Err(BusFault::Unmapped));
}

/// Accesses the BAR through configuration space.
fn by_window(rig: &Rig, bar: u64, offset: u64, len: u64) -> u64 {
    let at = capability(rig, 5).unwrap();
    rig.set_space(at + 4, Size::B1, bar);
    rig.set_space(at + 8, Size::B4, offset);
    rig.set_space(at + 12, Size::B4, len);
    at + 16
}

#[test]
fn the_bar_is_reached_through_configuration_space() {
    let (shared, rig) = sample_rig();
    assert_eq!(rig.board.registers()[0].base(), None, "before it is placed");
    let write = |offset, len, size, value| {
        let data = by_window(&rig, 0, offset, len);
        rig.set_space(data, size, value);
    };
    let read = |offset, len, size| rig.space(by_window(&rig, 0, offset, len), size);
    for status in [1, 3] {
        write(STATUS, 1, Size::B1, status);
        assert_eq!(read(STATUS, 1, Size::B1), status);
    }
    write(0, 4, Size::B4, 1);
    assert_eq!(read(4, 4, Size::B4), 1 | RING_RESET as u64 >> 32);
    write(SELECT, 2, Size::B2, 2);
    assert_eq!(read(SIZE, 2, Size::B2), 16);
    // The structure's length counts, not the access's.
    assert_eq!(read(SIZE, 2, Size::B1), 16);
    write(STATUS, 1, Size::B4, 0xffff_ff00);
    assert_eq!((rig.status(), shared.resets.load(Ordering::Relaxed)), (0, 1));
    write(TABLE + 8, 4, Size::B4, 0x1234);
    assert_eq!(rig.get(TABLE + 8, Size::B4), 0x1234);
    write(NOTIFY + 4, 2, Size::B2, 1);
    assert_eq!(rig.board.doorbell(("kick", 1)).unwrap().take().unwrap(), 1);
    let _ = read(ISR, 1, Size::B1);
}

#[test]
fn a6_hostile_windows_into_the_bar_reach_nothing() {
    let (_, rig) = sample_rig();
    rig.negotiate(0);
    let before: Vec<u64> = (0..60).map(|offset| rig.get(offset, Size::B1)).collect();
    for bar in [0, 1, 5, 6, 255] {
        for offset in
            [0, 1, 2, 3, STATUS, 0x3f, 0x7fff, 0x8000, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff]
        {
            for len in [0, 1, 2, 3, 4, 5, 8, 16, 0x100, 0xffff_ffff] {
                let data = by_window(&rig, bar, offset, len);
                for size in [Size::B1, Size::B2, Size::B4] {
                    let _ = rig.space(data, size);
                    // Where it would be a register that counts, it is read only.
                    if bar != 0 || offset > STATUS {
                        rig.set_space(data, size, 0xffff_ffff);
                    }
                }
            }
        }
    }
    assert_eq!((0..60).map(|offset| rig.get(offset, Size::B1)).collect::<Vec<_>>(), before);
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![Just(Size::B1), Just(Size::B2), Just(Size::B4), Just(Size::B8)]
}

fn offset() -> impl Strategy<Value = u64> {
    let parts = prop_oneof![
        8 => 0..64u64, 2 => Just(ISR), 2 => CONFIG..CONFIG + 8, 2 => NOTIFY..NOTIFY + 16, 2 => 0x2000..0x2010u64,
        4 => TABLE..TABLE + 80, 1 => 0..BAR_LEN + 8, 1 => any::<u64>(),
    ];
    parts.boxed()
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![0..20u64, any::<u64>(), Just(u64::MAX), (0..4u64).prop_map(|n| n << 20)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_access_panics_and_the_device_works_after_a_reset(
        accesses in proptest::collection::vec((any::<bool>(), offset(), size(), value()), 1..300)
    ) {
        let (_, rig) = sample_rig();
        rig.enable_msix(4);
        rig.negotiate(u128::MAX);
        rig.set_up(0, 16, 1);
        rig.go();
        for (in_space, offset, size, value) in accesses {
            if in_space && size != Size::B8 {
                let offset = (offset % 256) & !(size.bytes() - 1);
                let _ = rig.space(offset, size);
                rig.set_space(offset, size, value);
            } else {
                let at = Access { offset, size };
                let _ = rig.port().read(at);
                let _ = rig.port().write(at, value);
            }
            rig.inline.pump().unwrap();
        }
        rig.set_status(0);
        rig.set_space(0x42, Size::B2, 0);
        rig.enable_msix(4);
        let _ = rig.all_sent();
        rig.negotiate(0);
        let mut ring = rig.set_up(1, 16, 2);
        rig.go();
        rig.request(1, &mut ring);
        prop_assert_eq!(rig.sent(2), Some(0x42));
    }
}
