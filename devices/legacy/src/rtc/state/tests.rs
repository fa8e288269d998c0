use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use ossature_bus::{Device, Effect, Handover};

use super::*;
use crate::Rtc;
use crate::testing::state::{d2_mutations, round_trip, saved};
use crate::testing::{Attachment, attach_quiet};

/// Thursday, 29 February 2024, 12:34:56 UTC.
const LEAP_DAY: u64 = 1_709_210_096;

fn at(host: &Arc<AtomicU64>) -> Rtc {
    let host = host.clone();
    Rtc::with_clock("rtc", move || UNIX_EPOCH + Duration::from_secs(host.load(Ordering::Relaxed)))
}

fn make() -> Rtc {
    at(&Arc::new(LEAP_DAY.into()))
}

/// A state in which every field says something.
fn busy() -> RtcState {
    RtcState {
        offset: -86_400,
        snapshot: LEAP_DAY as i64 - 86_400,
        seen: LEAP_DAY as i64 - 86_401,
        index: 0x32,
        status_a: 0x26,
        status_b: 0x06,
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
    assert_eq!(refused(|state| state.status_b |= 0x40), value("status_b", 0x46));
}

#[test]
fn d2_a_clock_that_is_off_by_more_than_there_are_dates_can_be_set() {
    for offset in [i64::MIN, i64::MIN + 1, i64::MAX] {
        for snapshot in [i64::MIN, 0, i64::MAX] {
            let state = RtcState { offset, snapshot, seen: snapshot, ..busy() };
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
