use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use ossature_bus::Effect;

use super::registers::*;
use super::*;
use crate::testing::{Attachment, attach, hostile, lives_twice, metric};

/// A clock whose time the test sets, and a guest at its ports.
struct Guest {
    rtc: Rtc,
    machine: Attachment,
    host: Arc<AtomicI64>,
}

impl Guest {
    fn at(seconds: i64) -> Self {
        let host = Arc::new(AtomicI64::new(seconds));
        let time = host.clone();
        let mut rtc = Rtc::with_clock("rtc", move || system_time(time.load(Ordering::Relaxed)));
        let machine = attach(&mut rtc);
        Self { rtc, machine, host }
    }

    fn read(&self, index: u8) -> u8 {
        assert_eq!(self.machine.write(0, 0, index), Effect::None);
        self.machine.read(0, 1)
    }

    fn write(&self, index: u8, value: u8) {
        assert_eq!(self.machine.write(0, 0, index), Effect::None);
        assert_eq!(self.machine.write(0, 1, value), Effect::None);
    }

    fn pass(&self, seconds: i64) {
        self.host.fetch_add(seconds, Ordering::Relaxed);
    }

    /// Century, year, month, day, hour, minute, second.
    fn time(&self) -> [u8; 7] {
        [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].map(|index| self.read(index))
    }

    fn set(&self, time: [u8; 7]) {
        let b = self.read(STATUS_B);
        self.write(STATUS_B, b | B_SET);
        for (index, value) in [CENTURY, YEAR, MONTH, DAY, HOURS, MINUTES, SECONDS].into_iter().zip(time) {
            self.write(index, value);
        }
        self.write(STATUS_B, b);
    }
}

fn system_time(seconds: i64) -> SystemTime {
    let distance = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
}

/// Thursday, 29 February 2024, 12:34:56 UTC.
const LEAP_DAY: i64 = 1_709_210_096;

#[test]
fn linux_reads_the_hosts_time_without_waiting() {
    let guest = Guest::at(LEAP_DAY);
    // mc146818_avoid_UIP: seconds, UIP, time, UIP, seconds.
    let seconds = guest.read(SECONDS);
    assert_eq!(guest.read(STATUS_A) & A_UIP, 0);
    assert_eq!(guest.time(), [0x20, 0x24, 0x02, 0x29, 0x12, 0x34, 0x56]);
    assert_eq!(guest.read(WEEKDAY), 5);
    assert_eq!(guest.read(STATUS_A) & A_UIP, 0);
    assert_eq!(guest.read(SECONDS), seconds);
    // BCD, 24 hours, no interrupt enabled; RAM and time valid.
    assert_eq!(guest.read(STATUS_B), B_24H);
    assert_eq!(guest.read(STATUS_D), D_VALID);
}

#[test]
fn binary_and_12_hours() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(STATUS_B, B_BINARY | B_24H);
    assert_eq!(guest.time(), [20, 24, 2, 29, 12, 34, 56]);
    guest.write(STATUS_B, 0);
    for (hour, bcd) in [(0, 0x12), (1, 0x01), (11, 0x11), (12, 0x92), (13, 0x81), (23, 0x91)] {
        guest.host.store(LEAP_DAY / 86_400 * 86_400 + hour * 3600, Ordering::Relaxed);
        assert_eq!(guest.read(HOURS), bcd);
    }
}

#[test]
fn a_second_that_ends_between_two_reads_does_not_tear_the_time() {
    // One second before the end of 1999.
    let guest = Guest::at(946_684_799);
    assert_eq!(guest.read(STATUS_A) & A_UIP, 0);
    assert_eq!(guest.read(YEAR), 0x99);
    guest.pass(1);
    assert_eq!(guest.time(), [0x19, 0x99, 0x12, 0x31, 0x23, 0x59, 0x59]);
    assert_eq!(guest.read(STATUS_A) & A_UIP, 0);
    assert_eq!(guest.time(), [0x20, 0x00, 0x01, 0x01, 0x00, 0x00, 0x00]);
}

#[test]
fn a_guest_that_never_looks_at_uip_sees_the_time_pass() {
    let guest = Guest::at(LEAP_DAY);
    guest.read(STATUS_A);
    guest.pass(2);
    assert_eq!(guest.read(SECONDS), 0x58);
    guest.pass(1);
    assert_eq!(guest.read(SECONDS), 0x59);
}

#[test]
fn what_the_guest_sets_goes_on_from_there() {
    let guest = Guest::at(LEAP_DAY);
    guest.set([0x20, 0x30, 0x12, 0x31, 0x23, 0x59, 0x58]);
    guest.pass(1);
    guest.read(STATUS_A);
    assert_eq!(guest.time(), [0x20, 0x30, 0x12, 0x31, 0x23, 0x59, 0x59]);
    guest.pass(1);
    guest.read(STATUS_A);
    assert_eq!(guest.time(), [0x20, 0x31, 0x01, 0x01, 0x00, 0x00, 0x00]);
    assert_eq!(metric(&guest.rtc, "clock_sets"), 1);
}

#[test]
fn updates_stop_while_the_guest_sets_the_clock() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(STATUS_B, B_24H | B_SET);
    guest.pass(100);
    assert_eq!(guest.read(SECONDS), 0x56);
    assert_eq!(guest.read(STATUS_C), 0);
    // A register that is not written keeps what it showed.
    guest.write(HOURS, 0x07);
    guest.write(STATUS_B, B_24H);
    assert_eq!(guest.time(), [0x20, 0x24, 0x02, 0x29, 0x07, 0x34, 0x56]);
}

#[test]
fn a_register_written_without_set_takes_effect_at_once() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(YEAR, 0x28);
    assert_eq!(guest.time(), [0x20, 0x28, 0x02, 0x29, 0x12, 0x34, 0x56]);
}

#[test]
fn there_are_no_interrupts_to_enable_but_the_update_flag_can_be_polled() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(STATUS_B, 0x78 | B_24H);
    assert_eq!(guest.read(STATUS_B), B_24H);
    assert_eq!(guest.read(STATUS_C), 0);
    guest.pass(1);
    assert_eq!(guest.read(STATUS_C), C_UPDATED);
    assert_eq!(guest.read(STATUS_C), 0);
    assert_eq!(guest.rtc.requires().interrupts, []);
}

#[test]
fn ram_keeps_what_is_written_and_starts_empty() {
    let guest = Guest::at(LEAP_DAY);
    let ram = (0x0e..0x80).filter(|index| *index != CENTURY);
    for index in ram.clone() {
        assert_eq!(guest.read(index), 0);
        guest.write(index, !index);
    }
    for index in ram {
        // The NMI mask is not part of the index.
        assert_eq!(guest.read(0x80 | index), !index);
    }
    assert_eq!(guest.read(CENTURY), 0x20);
}

#[test]
fn a_reset_keeps_time_and_ram() {
    let mut guest = Guest::at(LEAP_DAY);
    guest.set([0x20, 0x30, 0x01, 0x02, 0x03, 0x04, 0x05]);
    guest.write(0x40, 9);
    guest.write(STATUS_B, B_BINARY | B_SET);
    guest.rtc.reset().unwrap();
    assert_eq!(guest.time(), [0x20, 0x30, 0x01, 0x02, 0x03, 0x04, 0x05]);
    assert_eq!(guest.read(0x40), 9);
}

#[test]
fn a_host_clock_at_its_ends_is_shown_somehow() {
    for seconds in [-1, i64::MIN / 4, i64::MAX / 4] {
        let guest = Guest::at(seconds);
        guest.set([0xff; 7]);
        guest.time();
    }
}

#[test]
fn any_access_is_answered() {
    hostile(|| Rtc::new("rtc"), |_, _| ());
}

#[test]
fn any_setting_of_the_clock_is_a_time() {
    use proptest::prelude::*;
    proptest!(|(b in any::<u8>(), time in any::<[u8; 7]>(), host in -1i64 << 40..1 << 40)| {
        let guest = Guest::at(host);
        guest.write(STATUS_B, b & !B_SET);
        guest.set(time);
        guest.write(STATUS_B, B_BINARY | B_24H);
        let [_, year, month, day, hour, minute, second] = guest.time();
        prop_assert!(year < 100 && (1..=12).contains(&month) && (1..=31).contains(&day));
        prop_assert!(hour < 24 && minute < 60 && second < 60);
    });
}

#[test]
fn a_reset_clock_is_as_new_but_for_what_the_battery_keeps() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(STATUS_A, 0x7f);
    guest.write(STATUS_B, B_BINARY);
    guest.pass(1);
    guest.read(STATUS_A);
    let (mut rtc, machine) = (guest.rtc, guest.machine);
    // The index register shows in what is read next.
    assert_eq!(machine.write(0, 0, STATUS_D), Effect::None);
    rtc.reset().unwrap();
    let fresh = Guest::at(LEAP_DAY + 1);
    assert_eq!(machine.read(0, 1), fresh.machine.read(0, 1));
    for index in 0..CMOS_SIZE as u8 {
        assert_eq!(machine.write(0, 0, index), Effect::None);
        assert_eq!(machine.read(0, 1), fresh.read(index), "{index:#x}");
    }
    let state = rtc.clock().state();
    assert_eq!(state, fresh.rtc.clock().state());
}

#[test]
fn a_detached_clock_lets_go_of_its_machine_and_keeps_the_time_for_another() {
    let mut rtc = Rtc::with_clock("rtc", || system_time(LEAP_DAY));
    let read = |machine: &Attachment, index| {
        assert_eq!(machine.write(0, 0, index), Effect::None);
        machine.read(0, 1)
    };
    lives_twice(&mut rtc, |_, machine| {
        assert_eq!(read(machine, STATUS_B), B_24H);
        assert_eq!([HOURS, MINUTES, SECONDS].map(|index| read(machine, index)), [0x12, 0x34, 0x56]);
        assert_eq!(read(machine, 0x40), 0);
        assert_eq!(machine.write(0, 0, STATUS_B), Effect::None);
        assert_eq!(machine.write(0, 1, B_BINARY | B_SET), Effect::None);
    });
    let machine = attach(&mut rtc);
    for (offset, value) in [(0, 0x40), (1, 9)] {
        assert_eq!(machine.write(0, offset, value), Effect::None);
    }
    rtc.detach().unwrap();
    assert_eq!(read(&attach(&mut rtc), 0x40), 9);
}
