//! The clock behind the two ports: the host's time as the registers show it, and what the guest sets.

use std::time::{Duration, SystemTime};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, BusFault, Effect, InterruptRequest, MmioMut, NodeKind, RegistersRequest, Requires,
};

use super::alarm::{Alarm, Timed};
use super::calendar::DateTime;
use super::device::Chip;
use super::moment::Moment;
use super::registers::*;
use super::state::RtcState;
use crate::register::{self, IRQ, REGISTERS};

/// The interrupt of a PC's clock (ISA).
const ISA_IRQ: u32 = 8;

/// The registers, and the time that they show.
pub struct Clock {
    host: Box<dyn Fn() -> SystemTime + Send>,
    /// Seconds by which the guest has set the clock off the host's.
    offset: i64,
    /// The time as of the last read of register A.
    snapshot: i64,
    /// The time up to which `flags` says what has happened.
    seen: Moment,
    /// Register C, but for what follows from it.
    flags: u8,
    /// The guest has been interrupted, and has not read register C since.
    raised: bool,
    /// The machine's vCPUs run.
    running: bool,
    /// While the clock is attached.
    alarm: Option<Alarm>,
    index: u8,
    status_a: u8,
    status_b: u8,
    /// RAM; while the guest sets the clock also the time, as it is encoded.
    cmos: [u8; CMOS_SIZE],
    sets: u64,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Clock").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Chip for Clock {
    const NODE: NodeKind = NodeKind::Rtc;

    fn new(host: Box<dyn Fn() -> SystemTime + Send>) -> Self {
        let mut clock = Self {
            host,
            offset: 0,
            snapshot: i64::MIN,
            seen: Moment { second: 0, nanos: 0 },
            flags: 0,
            raised: false,
            running: false,
            alarm: None,
            index: 0,
            status_a: A_DEFAULT,
            status_b: B_24H,
            cmos: [0; CMOS_SIZE],
            sets: 0,
        };
        clock.seen = clock.now();
        clock
    }

    fn requires() -> Requires {
        Requires::new()
            .registers(RegistersRequest::ports(REGISTERS, 2).fixed(0x70))
            .interrupt(InterruptRequest::edge(IRQ).fixed(ISA_IRQ).rare())
    }

    /// The registers as after power-on. The battery keeps time and RAM; the guest's unfinished setting of the clock ends.
    fn reset(&mut self) {
        (self.index, self.status_a, self.status_b) = (0, A_DEFAULT, B_24H);
        (self.flags, self.raised) = (0, false);
        (self.snapshot, self.seen) = (i64::MIN, self.now());
        self.settle();
    }

    fn run(&mut self, running: bool) {
        self.running = running;
        self.settle();
    }

    fn set_alarm(&mut self, alarm: Option<Alarm>) {
        self.alarm = alarm;
    }

    fn save(&self) -> SavedState<'static> {
        self.state().save()
    }

    fn load(&mut self, state: &SavedState<'_>) -> Result<(), StateError> {
        self.take_over(RtcState::load(state)?);
        Ok(())
    }

    fn sets(&self) -> u64 {
        self.sets
    }
}

impl Clock {
    pub(super) fn state(&self) -> RtcState {
        let Self { offset, snapshot, seen, flags, raised, index, status_a, status_b, cmos, .. } = *self;
        RtcState { offset, snapshot, seen, flags, raised, index, status_a, status_b, cmos }
    }

    fn take_over(&mut self, state: RtcState) {
        let RtcState { offset, snapshot, seen, flags, raised, index, status_a, status_b, cmos } = state;
        (self.offset, self.snapshot, self.seen) = (offset, snapshot, seen);
        (self.flags, self.raised) = (flags, raised);
        (self.index, self.status_a, self.status_b, self.cmos) = (index, status_a, status_b, cmos);
    }

    /// Sets the flags of what has ended by `now`.
    fn advance(&mut self, now: Moment) {
        let seen = std::mem::replace(&mut self.seen, now);
        if let Some(shift) = self.period() {
            if seen.ticks(shift) != now.ticks(shift) {
                self.flags |= B_PERIODIC;
            }
        }
        // While the guest sets the clock there are no updates, and without an update no alarm.
        if self.status_b & B_SET != 0 || seen.second == now.second {
            return;
        }
        self.flags |= B_UPDATE;
        // The host's clock may go backwards: then only this second counts.
        let from = if seen.second < now.second { seen.second } else { now.second.saturating_sub(1) };
        if self.next_alarm(from).is_some_and(|alarm| alarm <= now.second) {
            self.flags |= B_ALARM;
        }
    }

    /// How long until the next interrupt is to be raised, if one is.
    pub(super) fn until_interrupt(&self, now: Moment) -> Option<Duration> {
        // The guest is not interrupted again before it has read register C.
        if self.raised || !self.running {
            return None;
        }
        let enabled = |bit| self.status_b & bit != 0;
        let updates = self.status_b & B_SET == 0;
        let period = self.period().filter(|_| enabled(B_PERIODIC)).map(|shift| now.until_tick(shift));
        let update = (enabled(B_UPDATE) && updates).then(|| now.until_second(now.second.saturating_add(1)));
        let alarm = if enabled(B_ALARM) && updates { self.next_alarm(now.second) } else { None };
        [period, update, alarm.map(|second| now.until_second(second))].into_iter().flatten().min()
    }

    /// By how many bits the oscillator is divided for the periodic interrupt, if there is one.
    fn period(&self) -> Option<u32> {
        match u32::from(self.status_a & A_RATE) {
            0 => None,
            // With this time base, the two fastest rates are two of the others.
            rate @ 1..=2 => Some(rate + 6),
            rate => Some(rate - 1),
        }
    }

    /// The first second after `after` that the alarm registers match: within a day, or never.
    fn next_alarm(&self, after: i64) -> Option<i64> {
        let matches = |index, value| self.ram(index) >= ANY_TIME || self.ram(index) == value;
        let mut second = after.saturating_add(1);
        if !(0..60).any(|second| matches(SECONDS_ALARM, self.encode(second))) {
            return None;
        }
        // To the next hour, minute or second, whichever does not match: at most so many of each.
        for _ in 0..2 * (24 + 60 + 60) {
            let time = DateTime::from_unix(second);
            let step = if !matches(HOURS_ALARM, self.encode_hour(time.hour)) {
                3600 - second.rem_euclid(3600)
            } else if !matches(MINUTES_ALARM, self.encode(time.minute)) {
                60 - second.rem_euclid(60)
            } else if !matches(SECONDS_ALARM, self.encode(time.second)) {
                1
            } else {
                return Some(second);
            };
            second = second.saturating_add(step);
        }
        None
    }

    /// The time by the host's clock.
    fn host(&self) -> Moment {
        (self.host)().into()
    }

    /// The time that the clock shows.
    pub(super) fn now(&self) -> Moment {
        self.host().plus(self.offset)
    }

    /// The time that a read of a time register shows: the snapshot, unless it is old.
    fn shown(&self) -> i64 {
        let now = self.now().second;
        if (0..=1).contains(&now.saturating_sub(self.snapshot)) { self.snapshot } else { now }
    }

    fn is_time(index: u8) -> bool {
        matches!(index, SECONDS | MINUTES | HOURS | WEEKDAY | DAY | MONTH | YEAR | CENTURY)
    }

    fn encode(&self, value: u8) -> u8 {
        if self.status_b & B_BINARY != 0 { value } else { ((value / 10 % 10) << 4) | (value % 10) }
    }

    fn decode(&self, value: u8) -> u8 {
        if self.status_b & B_BINARY != 0 { value } else { (value >> 4) * 10 + (value & 0xf) }
    }

    fn encode_hour(&self, hour: u8) -> u8 {
        if self.status_b & B_24H != 0 {
            return self.encode(hour);
        }
        let pm = if hour >= 12 { 0x80 } else { 0 };
        pm | self.encode(if hour.is_multiple_of(12) { 12 } else { hour % 12 })
    }

    fn decode_hour(&self, value: u8) -> u8 {
        if self.status_b & B_24H != 0 {
            return self.decode(value);
        }
        self.decode(value & 0x7f) % 12 + if value & 0x80 != 0 { 12 } else { 0 }
    }

    /// A time register as it shows `time`.
    fn field(&self, index: u8, time: &DateTime) -> u8 {
        match index {
            SECONDS => self.encode(time.second),
            MINUTES => self.encode(time.minute),
            HOURS => self.encode_hour(time.hour),
            // Sunday is 1.
            WEEKDAY => self.encode(time.weekday() + 1),
            DAY => self.encode(time.day),
            MONTH => self.encode(time.month),
            YEAR => self.encode(time.year.rem_euclid(100) as u8),
            _ => self.encode(time.year.div_euclid(100).rem_euclid(100) as u8),
        }
    }

    fn ram(&self, index: u8) -> u8 {
        self.cmos.get(usize::from(index)).copied().unwrap_or(0)
    }

    fn set_ram(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.cmos.get_mut(usize::from(index)) {
            *byte = value;
        }
    }

    /// Stops the updates: the time registers keep what they show.
    fn freeze(&mut self) {
        let time = DateTime::from_unix(self.shown());
        for index in [SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY] {
            self.set_ram(index, self.field(index, &time));
        }
    }

    /// Goes on from what the time registers hold. The weekday follows from the date.
    fn thaw(&mut self) {
        let time = DateTime {
            year: i64::from(self.decode(self.ram(CENTURY))) * 100 + i64::from(self.decode(self.ram(YEAR))),
            month: self.decode(self.ram(MONTH)),
            day: self.decode(self.ram(DAY)),
            hour: self.decode_hour(self.ram(HOURS)),
            minute: self.decode(self.ram(MINUTES)),
            second: self.decode(self.ram(SECONDS)),
        };
        self.offset = time.to_unix().saturating_sub(self.host().second);
        // What lies between the old time and the new has not happened.
        (self.snapshot, self.seen) = (i64::MIN, self.now());
        self.sets += 1;
    }

    fn read_data(&mut self) -> u8 {
        match self.index {
            STATUS_A => {
                self.snapshot = self.now().second;
                self.status_a
            }
            STATUS_B => self.status_b,
            STATUS_C => {
                self.advance(self.now());
                let flags = std::mem::take(&mut self.flags);
                // What ends from here on interrupts anew.
                self.raised = false;
                self.settle();
                flags | if flags & self.status_b & C_FLAGS != 0 { C_PENDING } else { 0 }
            }
            STATUS_D => D_VALID,
            index if Self::is_time(index) && self.status_b & B_SET == 0 => {
                self.field(index, &DateTime::from_unix(self.shown()))
            }
            index => self.ram(index),
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.index {
            STATUS_A => {
                self.settle();
                self.status_a = value & !A_UIP;
                self.settle();
            }
            STATUS_B => {
                self.settle();
                // Who sets the clock is not to be interrupted by its updates.
                let value = value & !B_ABSENT & if value & B_SET != 0 { !B_UPDATE } else { 0xff };
                if value & !self.status_b & B_SET != 0 {
                    self.freeze();
                }
                let thaws = self.status_b & !value & B_SET != 0;
                self.status_b = value;
                if thaws {
                    self.thaw();
                }
                self.settle();
            }
            STATUS_C | STATUS_D => {}
            index if Self::is_time(index) && self.status_b & B_SET == 0 => {
                self.settle();
                self.freeze();
                self.set_ram(index, value);
                self.thaw();
                self.settle();
            }
            index @ (SECONDS_ALARM | MINUTES_ALARM | HOURS_ALARM) => {
                self.settle();
                self.set_ram(index, value);
                self.settle();
            }
            index => self.set_ram(index, value),
        }
    }
}

impl Timed for Clock {
    /// What happens by itself: sets the flags of what has ended since the last time, raises the interrupt if one of
    /// them is enabled, else arms the timer for the next that is.
    fn settle(&mut self) {
        let now = self.now();
        self.advance(now);
        let pending = self.flags & self.status_b & C_FLAGS != 0;
        let raises = pending && self.running && !self.raised;
        self.raised = pending && (self.raised || raises);
        let delay = self.until_interrupt(now);
        if let Some(alarm) = &mut self.alarm {
            if raises {
                alarm.raise();
            }
            alarm.arm(delay);
        }
    }
}

impl MmioMut for Clock {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        match register::byte(at, 2)? {
            INDEX => Err(BusFault::WriteOnly),
            _ => Ok(self.read_data().into()),
        }
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault> {
        let value = value as u8;
        match register::byte(at, 2)? {
            // Bit 7 masks the NMI of a PC.
            INDEX => self.index = value & 0x7f,
            _ => self.write_data(value),
        }
        Ok(Effect::None)
    }
}
