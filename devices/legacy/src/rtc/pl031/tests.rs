use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::UNIX_EPOCH;

use ossature_bus::{Device, EventLoop, Handover};
use proptest::prelude::*;

use super::*;
use crate::Pl031;
use crate::testing::state::{d2_mutations, saved};
use crate::testing::{Attachment, attach, attach_quiet, lives_twice, metric};

/// Thursday, 29 February 2024, 12:34:56 UTC.
const LEAP_DAY: u32 = 1_709_210_096;
const MILLIS: i64 = 1000;

/// A clock whose time the test sets, and a guest at its registers.
struct Guest {
    rtc: Pl031,
    machine: Attachment,
    /// Milliseconds since 1970.
    host: Arc<AtomicI64>,
}

fn clock(host: &Arc<AtomicI64>) -> Pl031 {
    let host = host.clone();
    let rtc = Pl031::with_clock("rtc", move || {
        let millis = host.load(Ordering::Relaxed);
        let distance = Duration::from_millis(millis.unsigned_abs());
        if millis < 0 { UNIX_EPOCH - distance } else { UNIX_EPOCH + distance }
    });
    // A loop that nobody runs: the test takes the turns.
    rtc.on(&EventLoop::new().unwrap())
}

fn word(offset: u64) -> Access {
    Access { offset, size: Size::B4 }
}

fn read(machine: &Attachment, offset: u64) -> u32 {
    machine.ports[0].read(word(offset)).unwrap() as u32
}

fn write(machine: &Attachment, offset: u64, value: u32) {
    assert_eq!(machine.ports[0].write(word(offset), value.into()), Ok(Effect::None));
}

impl Guest {
    fn at(seconds: i64) -> Self {
        let host = Arc::new(AtomicI64::new(seconds * MILLIS));
        let mut rtc = clock(&host);
        let machine = attach(&mut rtc);
        Self { rtc, machine, host }
    }

    fn read(&self, offset: u64) -> u32 {
        read(&self.machine, offset)
    }

    fn write(&self, offset: u64, value: u32) {
        write(&self.machine, offset, value);
    }

    fn pass(&self, millis: i64) {
        self.host.fetch_add(millis, Ordering::Relaxed);
    }

    fn until_alarm(&self) -> Option<Duration> {
        let clock = self.rtc.clock();
        clock.until_alarm(clock.host())
    }

    /// What a turn does when the timer is over, and how many interrupts that raises.
    fn turn(&self) -> u64 {
        self.rtc.clock().settle();
        self.machine.interrupts()
    }

    /// Sets the alarm as Linux does.
    fn await_alarm(&self, at: u32) {
        self.write(ICR, ALARM);
        self.write(MR, at);
        self.write(IMSC, ALARM);
    }
}

#[test]
fn linux_finds_the_clock_and_reads_the_hosts_time() {
    let guest = Guest::at(LEAP_DAY.into());
    let ids: Vec<_> = (0..8).map(|n| guest.read(ID + 4 * n)).collect();
    assert_eq!(ids, [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1]);
    assert_eq!((guest.read(DR), guest.read(CR), guest.read(RIS)), (LEAP_DAY, 1, 0));
    guest.pass(1500);
    assert_eq!(guest.read(DR), LEAP_DAY + 1);
}

#[test]
fn the_guest_sets_the_clock_and_it_goes_on_from_there() {
    let guest = Guest::at(LEAP_DAY.into());
    for time in [0, 1, LEAP_DAY - 1, u32::MAX] {
        guest.write(LR, time);
        assert_eq!((guest.read(LR), guest.read(DR)), (time, time));
        guest.pass(2 * MILLIS);
        assert_eq!(guest.read(DR), time.wrapping_add(2), "seconds wrap");
    }
    assert_eq!(metric(&guest.rtc, "clock_sets"), 4);
    assert_eq!(guest.machine.interrupts(), 0);
}

#[test]
fn a_host_before_1970_or_after_2106_has_a_clock_too() {
    assert_eq!(Guest::at(-1).read(DR), u32::MAX);
    assert_eq!(Guest::at((1 << 32) + 5).read(DR), 5);
}

#[test]
fn an_alarm_interrupts_once_at_its_second() {
    let guest = Guest::at(LEAP_DAY.into());
    guest.pass(250);
    assert_eq!(guest.until_alarm(), None, "no timer without an alarm");
    guest.await_alarm(LEAP_DAY + 10);
    assert_eq!(guest.until_alarm(), Some(Duration::from_millis(9750)));
    guest.pass(9749);
    assert_eq!((guest.turn(), guest.read(MIS)), (0, 0));
    guest.pass(1);
    assert_eq!((guest.turn(), guest.turn()), (1, 0));
    assert_eq!((guest.read(RIS), guest.read(MIS), guest.until_alarm()), (1, 1, None));
    guest.write(ICR, ALARM);
    assert_eq!((guest.read(RIS), guest.turn()), (0, 0));
    // The next time is when the counter has gone round.
    assert_eq!(guest.until_alarm(), Some(Duration::from_secs(1 << 32)));
}

#[test]
fn an_alarm_whose_second_ends_meanwhile_is_not_lost() {
    // Time passes with each look at it: a second.
    let host = Arc::new(AtomicI64::new(LEAP_DAY.into()));
    let looked = host.clone();
    let rtc = Pl031::with_clock("rtc", move || {
        UNIX_EPOCH + Duration::from_secs(looked.fetch_add(1, Ordering::Relaxed) as u64)
    });
    let mut rtc = rtc.on(&EventLoop::new().unwrap());
    let machine = attach(&mut rtc);
    let guest = Guest { rtc, machine, host };
    let looks = || guest.host.load(Ordering::Relaxed) as u32;
    let before = looks();
    assert_eq!(guest.turn(), 0);
    assert_eq!(looks(), before + 1, "what is due and when the next turn is are of one moment");
    guest.await_alarm(looks() + 8);
    (0..10).for_each(|_| guest.rtc.clock().settle());
    assert_eq!(guest.machine.interrupts(), 1);
    // The next one passes just as this one is cleared.
    guest.write(MR, looks() + 3);
    guest.write(ICR, ALARM);
    assert_eq!((guest.turn(), guest.read(MIS)), (1, 1));
}

#[test]
fn an_alarm_that_is_masked_shows_and_interrupts_when_it_is_unmasked() {
    let guest = Guest::at(LEAP_DAY.into());
    guest.write(MR, LEAP_DAY + 1);
    guest.pass(5 * MILLIS);
    assert_eq!((guest.turn(), guest.read(RIS), guest.read(MIS)), (0, 1, 0));
    guest.write(IMSC, ALARM);
    assert_eq!((guest.machine.interrupts(), guest.read(MIS)), (1, 1));
    // Masked and unmasked again, it is a new edge.
    guest.write(IMSC, 0);
    guest.write(IMSC, ALARM);
    assert_eq!(guest.machine.interrupts(), 1);
}

#[test]
fn an_alarm_at_this_very_second_is_now() {
    let guest = Guest::at(LEAP_DAY.into());
    guest.await_alarm(LEAP_DAY);
    assert_eq!(guest.machine.interrupts(), 1);
    // Setting the clock to it is the same; setting it past it is not.
    guest.await_alarm(LEAP_DAY + 100);
    guest.write(LR, LEAP_DAY + 200);
    assert_eq!((guest.turn(), guest.read(RIS)), (0, 0));
    guest.write(LR, LEAP_DAY + 100);
    assert_eq!(guest.machine.interrupts(), 1);
}

#[test]
fn a_host_whose_clock_goes_backwards_raises_nothing() {
    let guest = Guest::at(LEAP_DAY.into());
    guest.await_alarm(LEAP_DAY + 10);
    guest.pass(-3600 * MILLIS);
    assert_eq!((guest.turn(), guest.read(RIS)), (0, 0));
    guest.pass((3600 + 10) * MILLIS);
    assert_eq!(guest.turn(), 1);
}

#[test]
fn what_happens_during_a_pause_counts_when_the_machine_goes_on() {
    let mut guest = Guest::at(LEAP_DAY.into());
    guest.await_alarm(LEAP_DAY + 1);
    guest.rtc.quiesce().unwrap();
    guest.pass(5 * MILLIS);
    assert_eq!((guest.turn(), guest.until_alarm()), (0, None));
    guest.rtc.resume().unwrap();
    assert_eq!((guest.machine.interrupts(), guest.read(MIS)), (1, 1));
}

#[test]
fn a_reset_leaves_the_time_alone() {
    let mut guest = Guest::at(LEAP_DAY.into());
    guest.write(LR, 1000);
    guest.await_alarm(1000);
    guest.rtc.quiesce().unwrap();
    guest.rtc.reset().unwrap();
    guest.rtc.resume().unwrap();
    assert_eq!([DR, MR, LR, IMSC, RIS].map(|offset| guest.read(offset)), [1000, 0, 0, 0, 0]);
    assert_eq!(guest.machine.interrupts(), 1, "the one before the reset");
}

#[test]
fn a_restored_clock_shows_the_hosts_time_and_raises_the_alarm_that_has_passed() {
    let mut guest = Guest::at(LEAP_DAY.into());
    guest.write(LR, 5000);
    guest.await_alarm(5010);
    guest.rtc.quiesce().unwrap();
    let state = saved(&mut guest.rtc);
    for (later, interrupts) in [(5, 0), (10, 1), (100, 1)] {
        let host = Arc::new(AtomicI64::new((i64::from(LEAP_DAY) + later) * MILLIS));
        let mut restored = clock(&host);
        let machine = attach_quiet(&mut restored);
        restored.restore(Handover::new(state.clone())).unwrap();
        assert_eq!(saved(&mut restored), state);
        restored.resume().unwrap();
        assert_eq!((machine.interrupts(), read(&machine, DR)), (interrupts, 5000 + later as u32));
    }
}

#[test]
fn d2_a_state_that_no_clock_can_have_is_refused() {
    let host = Arc::new(AtomicI64::new(i64::from(LEAP_DAY) * MILLIS));
    let state = Pl031State {
        offset: 86_400,
        load: LEAP_DAY,
        matches: LEAP_DAY + 86_400,
        mask: ALARM,
        seen: LEAP_DAY + 86_400,
        pending: true,
        raised: true,
    };
    d2_mutations(
        || clock(&host),
        &state.save(),
        |_, machine| {
            write(machine, LR, 77);
            assert_eq!(read(machine, DR), 77);
        },
    );
}

#[test]
fn a_detached_clock_lets_go_of_its_machine_and_works_in_another() {
    let host = Arc::new(AtomicI64::new(i64::from(LEAP_DAY) * MILLIS));
    lives_twice(&mut clock(&host), |_, machine| {
        let now = read(machine, DR);
        write(machine, MR, now);
        write(machine, IMSC, ALARM);
        assert_eq!(machine.interrupts(), 1);
    });
}

#[test]
fn the_hosts_timer_raises_the_alarm() {
    // On a thread of its own, by the host's clock.
    let mut rtc = Pl031::new("rtc");
    let machine = attach(&mut rtc);
    let at = read(&machine, DR).wrapping_add(1);
    write(&machine, MR, at);
    write(&machine, IMSC, ALARM);
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while machine.interrupts() == 0 {
        assert!(std::time::Instant::now() < deadline, "no alarm");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(read(&machine, DR) >= at);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    /// Each access is answered or is a fault, words alone reach a register, and a guest that is restored half-way goes on as
    /// one that is not.
    #[test]
    fn any_access_is_answered_and_restored_clocks_go_on(
        steps in prop::collection::vec(
            (prop_oneof![0u64..0x24, 0xfd8u64..0x1008, any::<u64>()], 0usize..12, any::<bool>(),
             prop_oneof![any::<u32>(), 0u32..4, LEAP_DAY..LEAP_DAY + 4], 0i64..3000),
            1..100,
        ),
        half in 0usize..100,
    ) {
        const SIZES: [Size; 4] = [Size::B1, Size::B2, Size::B8, Size::B4];
        let host = Arc::new(AtomicI64::new(i64::from(LEAP_DAY) * MILLIS));
        let (mut first, mut second) = (clock(&host), clock(&host));
        let machines = [attach(&mut first), attach(&mut second)];
        for (index, (offset, size, is_write, value, millis)) in steps.into_iter().enumerate() {
            host.fetch_add(millis, Ordering::Relaxed);
            if index == half {
                first.quiesce().unwrap();
                second.quiesce().unwrap();
                let state = saved(&mut first);
                second.restore(Handover::new(state)).unwrap();
                first.resume().unwrap();
                second.resume().unwrap();
            }
            let at = Access { offset, size: SIZES[size.min(3)] };
            let [one, other] = machines.each_ref().map(|machine| {
                let done = match is_write {
                    true => machine.ports[0].write(at, value.into()).map(|_| 0),
                    false => machine.ports[0].read(at),
                };
                (done, machine.interrupts())
            });
            if at.size != Size::B4 {
                prop_assert_eq!(one.0, Err(BusFault::Width));
            } else if offset >= LEN || offset % 4 != 0 {
                prop_assert_eq!(one.0, Err(BusFault::Unmapped));
            }
            prop_assert_eq!(one, other);
        }
    }
}
