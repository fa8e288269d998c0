//! Sizing and relocation (row B7).

use super::*;

#[test]
fn b7_every_bar_of_every_size_is_sized() {
    let host = Host::started();
    for wide in [false, true] {
        for index in 0..if wide { 5 } else { 6 } {
            for shift in 4..if wide { 64 } else { 32 } {
                let size = 1u64 << shift;
                let bar = if wide { Bar::memory64(index, size) } else { Bar::memory32(index, size) };
                let sample = Plugged::new(&host, info().bar(bar));
                let register = BAR0 + 4 * u64::from(index);
                let kind = if wide { 4 } else { 0 };
                sample.write(&host, register, Size::B4, 0xffff_ffff);
                let low = sample.read(&host, register, Size::B4);
                let mut sized = low;
                if wide {
                    sample.write(&host, register + 4, Size::B4, 0xffff_ffff);
                    sized |= sample.read(&host, register + 4, Size::B4) << 32;
                } else {
                    sized |= 0xffff_ffff << 32;
                }
                assert_eq!(sized, !(size - 1) | kind, "BAR {index} of {size:#x}");
                // The other BARs' registers are nothing.
                for other in (0..6).map(|other| BAR0 + 4 * other) {
                    if other != register && !(wide && other == register + 4) {
                        sample.write(&host, other, Size::B4, 0xffff_ffff);
                        assert_eq!(sample.read(&host, other, Size::B4), 0);
                    }
                }
                assert_eq!(sample.base(0), None);
                drop(sample);
                let _ = host.eject(1 << 1);
            }
        }
    }
}

/// A function whose 64-bit BAR is in the high window, and whose 32-bit BAR is in the low one.
fn placed(host: &Host) -> Plugged {
    let sample = Plugged::new(host, sample(1));
    sample.write(host, BAR0, Size::B4, HIGH & 0xffff_ffff | 0x10000);
    sample.write(host, BAR0 + 4, Size::B4, HIGH >> 32);
    sample.write(host, BAR0 + 12, Size::B4, LOW);
    assert_eq!((sample.base(0), sample.base(1)), (None, None), "it does not decode yet");
    assert!(matches!(sample.effect_of(host, COMMAND, Size::B2, 2), Effect::Remap(_)));
    assert_eq!((sample.base(0), sample.base(1)), (Some(HIGH + 0x10000), Some(LOW)));
    sample
}

#[test]
fn a_bar_is_where_the_guest_puts_it_while_the_function_decodes() {
    let host = Host::started();
    let sample = placed(&host);
    // The same value again moves nothing.
    assert_eq!(sample.effect_of(&host, COMMAND, Size::B2, 6), Effect::None);
    assert_eq!(sample.effect_of(&host, BAR0 + 12, Size::B4, LOW), Effect::None);
    assert!(matches!(sample.effect_of(&host, COMMAND, Size::B2, 0), Effect::Remap(_)));
    assert_eq!((sample.base(0), sample.base(1)), (None, None));
    sample.write(&host, COMMAND, Size::B2, 2);
    // A 64-bit BAR may be below 4 GiB as well.
    sample.write(&host, BAR0 + 4, Size::B4, 0);
    assert_eq!(sample.base(0), None, "between the halves it is nowhere");
    sample.write(&host, BAR0, Size::B4, LOW + 0x10000);
    assert_eq!(sample.base(0), Some(LOW + 0x10000));
}

#[test]
fn b7_moved_and_sized_while_decoding() {
    let host = Host::started();
    let sample = placed(&host);
    let bar0 = sample.bar0();
    let _ = bar0.write(Access { offset: 0x40, size: Size::B4 }, 0x55).unwrap();
    sample.write(&host, BAR0 + 12, Size::B4, 0xffff_ffff);
    assert_eq!(sample.read(&host, BAR0 + 12, Size::B4), 0xffff_f000);
    assert_eq!(sample.base(1), None);
    sample.write(&host, BAR0 + 12, Size::B4, LOW);
    assert_eq!(sample.base(1), Some(LOW));
    for offset in [BAR0, BAR0 + 4] {
        let before = sample.read(&host, offset, Size::B4);
        sample.write(&host, offset, Size::B4, 0xffff_ffff);
        sample.write(&host, offset, Size::B4, before);
    }
    assert_eq!(sample.base(0), Some(HIGH + 0x10000));
    assert_eq!(sample.bar0().read(Access { offset: 0x40, size: Size::B4 }), Ok(0x55));
    // Moved byte by byte.
    sample.write(&host, BAR0 + 2, Size::B1, 0x20);
    assert_eq!(sample.base(0), Some(HIGH + 0x20_0000));
}

#[test]
fn b7_a_bar_outside_of_the_windows_is_nowhere_and_reads_what_was_written() {
    let host = Host::started();
    let sample = placed(&host);
    for address in [0, 0x1000, LOW - 0x1000, LOW + (256 << 20), 0xfee0_0000, 0xffff_f000] {
        sample.write(&host, BAR0 + 12, Size::B4, address);
        assert_eq!((sample.base(1), sample.read(&host, BAR0 + 12, Size::B4)), (None, address));
        sample.write(&host, BAR0 + 12, Size::B4, LOW);
        assert_eq!(sample.base(1), Some(LOW));
    }
    for high in [0, 1, (HIGH >> 32) - 1, (HIGH >> 32) + 16, 0xffff_ffff] {
        sample.write(&host, BAR0 + 4, Size::B4, high);
        assert_eq!((sample.base(0), sample.read(&host, BAR0 + 4, Size::B4)), (None, high));
    }
    sample.write(&host, BAR0 + 4, Size::B4, HIGH >> 32);
    assert_eq!(sample.base(0), Some(HIGH + 0x10000));
}

#[test]
fn b7_a_move_that_the_machine_refuses_leaves_the_range_where_it_was() {
    let host = Host::started();
    let sample = placed(&host);
    let effect = host.write(sample.slot(), BAR0 + 12, Size::B4, LOW + 0x5000);
    assert!(matches!(effect, Effect::Remap(_)));
    let range = &sample.board.registers()[1];
    assert_eq!(range.wanted(), Some(LOW + 0x5000));
    // RAM, or another device's.
    range.moved(range.base());
    assert_eq!((sample.base(1), sample.read(&host, BAR0 + 12, Size::B4)), (Some(LOW), LOW + 0x5000));
    // Elsewhere is tried only when the guest writes again.
    assert_eq!(sample.effect_of(&host, 0x3c, Size::B1, 1), Effect::None);
    sample.write(&host, COMMAND, Size::B2, 6);
    assert_eq!(sample.base(1), Some(LOW + 0x5000));
}

#[test]
fn a_reset_forgets_where_bars_were() {
    let host = Host::started();
    let mut sample = placed(&host);
    sample.function.reset().unwrap();
    assert_eq!(sample.board.registers().iter().map(|range| range.wanted()).collect::<Vec<_>>(), [None, None]);
    assert_eq!((sample.read(&host, BAR0, Size::B4), sample.read(&host, COMMAND, Size::B2)), (0xc, 0));
}

#[test]
fn without_a_host_bridge_no_bar_is_anywhere() {
    let mut host = Host::started();
    let sample = placed(&host);
    host.device.detach().unwrap();
    assert_eq!(host.bus.slot_of("sample"), Some(1));
    let effect = host.bus.write(1, 0, 0x10, Size::B4, LOW);
    sample.board.carry_out(effect);
    assert_eq!((sample.base(0), sample.base(1)), (None, None));
}

#[test]
fn b7_every_bar_is_moved_and_refused() {
    let host = Host::started();
    for (index, wide) in (0..6).map(|index| (index, false)).chain((0..5).map(|index| (index, true))) {
        let bar = if wide { Bar::memory64(index, 0x4000) } else { Bar::memory32(index, 0x4000) };
        let sample = Plugged::new(&host, info().bar(bar));
        let register = BAR0 + 4 * u64::from(index);
        sample.write(&host, COMMAND, Size::B2, 2);
        assert_eq!(sample.base(0), None, "BAR {index}: 0 is in no window");
        let mut places = vec![LOW, LOW + 0x4000, LOW + 0xfff_c000];
        if wide {
            places.extend([HIGH, HIGH + 0x4000, HIGH + (64 << 30) - 0x4000]);
        }
        for &place in &places {
            sample.write(&host, register, Size::B4, place & 0xffff_ffff);
            if wide {
                sample.write(&host, register + 4, Size::B4, place >> 32);
            }
            assert_eq!(sample.base(0), Some(place), "BAR {index}");
        }
        // Refused by the machine, as over RAM or another BAR: it stays, and moves when it can.
        let last = places.last().copied();
        let effect = host.write(sample.slot(), register, Size::B4, LOW + 0x8000);
        assert!(matches!(effect, Effect::Remap(_)));
        let range = &sample.board.registers()[0];
        range.moved(range.base());
        assert_eq!(sample.base(0), last, "BAR {index}");
        if wide {
            sample.write(&host, register + 4, Size::B4, 0);
        } else {
            sample.write(&host, register, Size::B4, LOW + 0x8000);
        }
        assert_eq!(sample.base(0), Some(LOW + 0x8000), "BAR {index}");
        drop(sample);
        let _ = host.eject(1 << 1);
    }
}
