use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ossature_bus::{Device, Effect, EventLoop};

use super::alarm::Timed;
use super::registers::*;
use super::*;
use crate::testing::{Attachment, attach, hostile, lives_twice, metric};

/// A clock whose time the test sets, and a guest at its ports.
struct Guest {
    rtc: Rtc,
    machine: Attachment,
    /// Nanoseconds since 1970.
    host: Arc<AtomicI64>,
}

const SECOND: i64 = 1_000_000_000;

impl Guest {
    fn at(seconds: i64) -> Self {
        let host = Arc::new(AtomicI64::new(seconds.saturating_mul(SECOND)));
        let time = host.clone();
        let rtc = Rtc::with_clock("rtc", move || system_time(time.load(Ordering::Relaxed)));
        // A loop that nobody runs: the test takes the turns.
        let mut rtc = rtc.on(&EventLoop::new().unwrap());
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
        self.pass_nanos(seconds * SECOND);
    }

    fn pass_nanos(&self, nanos: i64) {
        self.host.fetch_add(nanos, Ordering::Relaxed);
    }

    /// What the timer is armed with.
    fn until_interrupt(&self) -> Option<Duration> {
        let clock = self.rtc.clock();
        clock.until_interrupt(clock.now())
    }

    /// What a turn does when the timer is over, and how many interrupts that raises.
    fn turn(&self) -> u64 {
        self.rtc.clock().settle();
        self.machine.interrupts()
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

fn system_time(nanos: i64) -> SystemTime {
    let distance = Duration::from_nanos(nanos.unsigned_abs());
    if nanos < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
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
        guest.host.store((LEAP_DAY / 86_400 * 86_400 + hour * 3600) * SECOND, Ordering::Relaxed);
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
    assert_eq!(guest.read(STATUS_C), B_PERIODIC);
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
fn g11_flags_can_be_polled_and_reading_them_clears_them() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(SECONDS_ALARM, 0x58);
    guest.write(MINUTES_ALARM, 0x34);
    guest.write(HOURS_ALARM, 0xff);
    assert_eq!(guest.read(STATUS_C), 0);
    guest.pass_nanos(1_000_000);
    assert_eq!(guest.read(STATUS_C), B_PERIODIC);
    guest.pass(1);
    assert_eq!(guest.read(STATUS_C), B_PERIODIC | B_UPDATE);
    guest.pass(1);
    assert_eq!(guest.read(STATUS_C), B_PERIODIC | B_UPDATE | B_ALARM);
    assert_eq!(guest.read(STATUS_C), 0);
    assert_eq!(guest.machine.interrupts(), 0, "none is enabled");
    // The square wave is not there.
    guest.write(STATUS_B, 0x78 | B_24H);
    assert_eq!(guest.read(STATUS_B), 0x70 | B_24H);
}

#[test]
fn g11_each_interrupt_is_raised_once_until_register_c_is_read() {
    let update = |guest: &Guest| guest.pass(1);
    let alarm = |guest: &Guest| guest.pass(3600);
    let period = |guest: &Guest| guest.pass_nanos(976_563);
    for (enable, happen) in [(B_UPDATE, &update as &dyn Fn(&Guest)), (B_ALARM, &alarm), (B_PERIODIC, &period)]
    {
        let guest = Guest::at(LEAP_DAY);
        for index in [SECONDS_ALARM, MINUTES_ALARM] {
            guest.write(index, guest.read(index - 1));
        }
        guest.write(HOURS_ALARM, ANY_TIME);
        guest.write(STATUS_B, B_24H | enable);
        assert_eq!(guest.turn(), 0, "{enable:#x}: nothing has happened yet");
        for _ in 0..3 {
            happen(&guest);
            assert_eq!(guest.turn(), 1, "{enable:#x}");
            happen(&guest);
            assert_eq!(guest.turn(), 0, "{enable:#x}: register C has not been read");
            let flags = guest.read(STATUS_C);
            assert_eq!(flags & (C_PENDING | enable), C_PENDING | enable);
        }
        guest.write(STATUS_B, B_24H);
        happen(&guest);
        assert_eq!(guest.turn(), 0, "{enable:#x} is off");
    }
}

#[test]
fn g11_an_enable_after_its_flag_interrupts_at_once() {
    let guest = Guest::at(LEAP_DAY);
    guest.pass(1);
    guest.write(STATUS_B, B_24H | B_UPDATE);
    assert_eq!(guest.machine.interrupts(), 1);
}

#[test]
fn g11_the_timer_is_armed_for_what_comes_next_and_for_nothing_else() {
    let guest = Guest::at(LEAP_DAY);
    let next = || guest.until_interrupt();
    assert_eq!(next(), None);
    guest.pass_nanos(250_000_000);
    guest.write(STATUS_B, B_24H | B_UPDATE);
    guest.read(STATUS_C);
    assert_eq!(next(), Some(Duration::from_millis(750)));
    // 12:35:10 today; then 12:35:10 tomorrow; then 0:35:10 with hours of 12.
    for (index, value) in [(SECONDS_ALARM, 0x10), (MINUTES_ALARM, 0x35), (HOURS_ALARM, 0x12)] {
        guest.write(index, value);
    }
    guest.write(STATUS_B, B_24H | B_ALARM);
    assert_eq!(next(), Some(Duration::from_millis(13_750)));
    guest.pass(14);
    guest.read(STATUS_C);
    assert_eq!(next(), Some(Duration::from_millis(86_399_750)));
    guest.write(STATUS_B, B_ALARM);
    guest.read(STATUS_C);
    assert_eq!(next(), Some(Duration::from_millis(43_199_750)));
    guest.write(SECONDS_ALARM, 0x60);
    assert_eq!(next(), None, "no time is that");
    // Rates: register A, and the period in units of the oscillator.
    for (rate, ticks) in [(1u8, 128u32), (2, 256), (3, 4), (6, 32), (15, 16_384)] {
        guest.write(STATUS_A, 0x20 | rate);
        guest.write(STATUS_B, B_24H | B_PERIODIC);
        guest.read(STATUS_C);
        let period = Duration::from_secs(ticks.into()) / 32_768;
        let left = next().unwrap();
        assert!(left > Duration::ZERO && left <= period + Duration::from_nanos(1), "{rate}: {left:?}");
    }
    guest.write(STATUS_A, 0x20);
    assert_eq!(next(), None);
}

#[test]
fn g11_what_the_guest_sets_the_clock_past_has_not_happened() {
    let guest = Guest::at(LEAP_DAY);
    for (index, value) in [(SECONDS_ALARM, 0x10), (MINUTES_ALARM, 0x35), (HOURS_ALARM, 0x12)] {
        guest.write(index, value);
    }
    guest.write(STATUS_B, B_24H | B_ALARM | B_UPDATE);
    guest.write(STATUS_B, B_24H | B_ALARM | B_UPDATE | B_SET);
    assert_eq!(
        guest.read(STATUS_B),
        B_24H | B_ALARM | B_SET,
        "setting the clock ends the update's interrupts"
    );
    guest.pass(100);
    assert_eq!(guest.turn(), 0, "there are no updates");
    guest.write(MINUTES, 0x40);
    guest.write(STATUS_B, B_24H | B_ALARM);
    assert_eq!(guest.turn(), 0);
    assert_eq!(guest.read(STATUS_C) & B_ALARM, 0);
}

#[test]
fn g11_a_pause_raises_nothing_and_what_it_missed_counts_once() {
    let mut guest = Guest::at(LEAP_DAY);
    guest.write(STATUS_B, B_24H | B_UPDATE);
    guest.rtc.quiesce().unwrap();
    assert_eq!(guest.until_interrupt(), None);
    guest.pass(30);
    assert_eq!(guest.turn(), 0);
    guest.rtc.resume().unwrap();
    assert_eq!(guest.machine.interrupts(), 1);
    guest.rtc.quiesce().unwrap();
    guest.rtc.resume().unwrap();
    assert_eq!(guest.machine.interrupts(), 0, "the guest has been told");
    guest.read(STATUS_C);
    assert_eq!(guest.turn(), 0);
}

#[test]
fn g11_the_hosts_clock_may_go_backwards() {
    let guest = Guest::at(LEAP_DAY);
    guest.write(SECONDS_ALARM, 0x55);
    guest.write(MINUTES_ALARM, 0xff);
    guest.write(HOURS_ALARM, 0xff);
    guest.write(STATUS_B, B_24H | B_ALARM);
    guest.pass(-10);
    assert_eq!(guest.turn(), 0);
    assert_eq!(guest.until_interrupt(), Some(Duration::from_secs(9)));
    guest.pass(9);
    assert_eq!(guest.turn(), 1);
}

#[test]
fn g11_what_ends_while_register_c_is_read_interrupts() {
    // Time passes with each look at it: a period of the periodic interrupt.
    let host = AtomicI64::new(LEAP_DAY * SECOND);
    let rtc = Rtc::with_clock("rtc", move || system_time(host.fetch_add(SECOND / 1024, Ordering::Relaxed)));
    let mut rtc = rtc.on(&EventLoop::new().unwrap());
    let machine = attach(&mut rtc);
    let guest = Guest { rtc, machine, host: Arc::default() };
    guest.write(STATUS_B, B_24H | B_PERIODIC);
    for _ in 0..100 {
        assert_eq!(guest.turn(), 1);
        assert_eq!(guest.read(STATUS_C) & (C_PENDING | B_PERIODIC), C_PENDING | B_PERIODIC);
    }
}

#[test]
fn g11_the_hosts_timer_gives_the_clock_its_turns() {
    let event_loop = EventLoop::new().unwrap();
    for given in [Some(&event_loop), None] {
        let mut rtc = Rtc::new("rtc");
        if let Some(event_loop) = given {
            rtc = rtc.on(event_loop);
        }
        let machine = attach(&mut rtc);
        assert_eq!(machine.write(0, 0, STATUS_B), Effect::None);
        assert_eq!(machine.write(0, 1, B_24H | B_PERIODIC), Effect::None);
        for _ in 0..5 {
            let deadline = Instant::now() + Duration::from_secs(60);
            while machine.interrupts() == 0 {
                assert!(Instant::now() < deadline, "no interrupt");
                match given {
                    Some(event_loop) => drop(event_loop.pass().unwrap()),
                    None => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            assert_eq!(machine.write(0, 0, STATUS_C), Effect::None);
            assert_eq!(machine.read(0, 1) & (C_PENDING | B_PERIODIC), C_PENDING | B_PERIODIC);
        }
        rtc.quiesce().unwrap();
        rtc.detach().unwrap();
    }
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
    for seconds in [-1, i64::MIN, i64::MAX] {
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
    let mut rtc = Rtc::with_clock("rtc", || system_time(LEAP_DAY * SECOND));
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
