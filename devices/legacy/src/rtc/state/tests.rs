use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use ossature_bus::{Device, Effect, EventLoop, Handover};

use super::*;
use crate::Rtc;
use crate::testing::state::{d2_mutations, round_trip, saved};
use crate::testing::{Attachment, attach_quiet};

/// Thursday, 29 February 2024, 12:34:56 UTC.
const LEAP_DAY: u64 = 1_709_210_096;

fn at(host: &Arc<AtomicU64>) -> Rtc {
    let host = host.clone();
    let rtc = Rtc::with_clock("rtc", move || UNIX_EPOCH + Duration::from_secs(host.load(Ordering::Relaxed)));
    // A loop that nobody runs: the steps alone make the time pass.
    rtc.on(&EventLoop::new().unwrap())
}

fn make() -> Rtc {
    at(&Arc::new(LEAP_DAY.into()))
}

/// A state in which every field says something.
fn busy() -> RtcState {
    RtcState {
        offset: -86_400,
        snapshot: LEAP_DAY as i64 - 86_400,
        seen: Moment { second: LEAP_DAY as i64 - 86_401, nanos: 999_999_999 },
        flags: 0x30,
        raised: true,
        index: 0x32,
        status_a: 0x26,
        status_b: 0x36,
        cmos: std::array::from_fn(|n| n as u8 ^ 0x5a),
    }
}

fn write(machine: &Attachment, offset: u64, value: u8) {
    assert_eq!(machine.write(0, offset, value), Effect::None);
}

fn read(machine: &Attachment, index: u8) -> u8 {
    write(machine, 0, index);
    machine.read(0, 1)
}

/// Every register can be read, and the clock can be set and then goes right.
fn obeys(_: &mut Rtc, machine: &Attachment) {
    for index in 0..128 {
        read(machine, index);
    }
    let set = |index, value| {
        write(machine, 0, index);
        write(machine, 1, value);
    };
    set(0x0b, 0x82);
    let time =
        [(0x32, 0x20), (0x09, 0x26), (0x08, 0x11), (0x07, 0x23), (0x04, 0x14), (0x02, 0x30), (0x00, 0x15)];
    time.iter().for_each(|(index, value)| set(*index, *value));
    set(0x0b, 0x02);
    time.iter().for_each(|(index, value)| assert_eq!(read(machine, *index), *value));
}

#[test]
fn a_guest_cannot_tell_the_restored_clock_from_the_saved_one() {
    // Both follow the same host's clock, which the steps set: it also goes backwards.
    let host = Arc::new(AtomicU64::new(LEAP_DAY));
    round_trip(|| at(&host), |_, seconds| host.store(LEAP_DAY + u64::from(seconds), Ordering::Relaxed));
}

#[test]
fn d2_fields_are_refused_or_taken() {
    d2_mutations(make, &busy().save(), obeys);
}

#[test]
fn d2_bits_that_a_register_does_not_have_are_refused() {
    let refused = |change: fn(&mut RtcState)| {
        let mut state = busy();
        change(&mut state);
        make().restore(Handover::new(state.save())).unwrap_err()
    };
    let value = |field, value| StateError::Value { field, value };
    assert_eq!(refused(|state| state.index = 0x80), value("index", 0x80));
    assert_eq!(refused(|state| state.status_a |= 0x80), value("status_a", 0xa6));
    assert_eq!(refused(|state| state.status_b |= 0x08), value("status_b", 0x3e));
    assert_eq!(refused(|state| state.flags |= 0x80), value("flags", 0xb0));
    assert_eq!(refused(|state| state.seen.nanos = 1_000_000_000), value("seen_nanos", 1_000_000_000));
}

#[test]
fn d2_a_clock_that_is_off_by_more_than_there_are_dates_can_be_set() {
    for offset in [i64::MIN, i64::MIN + 1, i64::MAX] {
        for snapshot in [i64::MIN, 0, i64::MAX] {
            let seen = Moment { second: snapshot, nanos: 0 };
            let state = RtcState { offset, snapshot, seen, ..busy() };
            let mut rtc = make();
            let machine = attach_quiet(&mut rtc);
            rtc.restore(Handover::new(state.save())).unwrap();
            obeys(&mut rtc, &machine);
        }
    }
}

#[test]
fn the_clock_goes_on_while_the_state_lies_in_a_file() {
    let host = Arc::new(AtomicU64::new(LEAP_DAY));
    let mut rtc = at(&host);
    rtc.restore(Handover::new(RtcState { offset: 3600, status_b: 0x02, ..busy() }.save())).unwrap();
    let state = saved(&mut rtc);
    drop(rtc);

    host.fetch_add(86_400 + 5, Ordering::Relaxed);
    let mut rtc = at(&host);
    let machine = attach_quiet(&mut rtc);
    rtc.restore(Handover::new(state)).unwrap();
    let time = [0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00].map(|index| read(&machine, index));
    assert_eq!(time, [0x20, 0x24, 0x03, 0x01, 0x13, 0x35, 0x01]);
}

#[test]
fn g11_an_alarm_that_has_passed_while_the_state_lay_in_a_file_is_raised() {
    let host = Arc::new(AtomicU64::new(LEAP_DAY));
    let mut rtc = at(&host);
    let machine = attach_quiet(&mut rtc);
    rtc.resume().unwrap();
    let set = |index, value| {
        write(&machine, 0, index);
        write(&machine, 1, value);
    };
    // 12:35:10, in 14 seconds.
    for (index, value) in [(0x01, 0x10), (0x03, 0x35), (0x05, 0x12), (0x0b, 0x22)] {
        set(index, value);
    }
    rtc.quiesce().unwrap();
    let state = saved(&mut rtc);
    for (later, interrupts) in [(13, 0), (14, 1), (3600, 1)] {
        host.store(LEAP_DAY + later, Ordering::Relaxed);
        let mut rtc = at(&host);
        let machine = attach_quiet(&mut rtc);
        rtc.restore(Handover::new(state.clone())).unwrap();
        assert_eq!(machine.interrupts(), 0);
        rtc.resume().unwrap();
        assert_eq!(machine.interrupts(), interrupts, "{later}");
    }
}
