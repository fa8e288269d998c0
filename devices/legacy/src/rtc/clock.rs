//! The clock behind the two ports: the host's time as the registers show it, and what the guest sets.

use std::time::{SystemTime, UNIX_EPOCH};

use ossature_bus::{Access, BusFault, Effect, MmioMut};

use super::calendar::DateTime;
use super::registers::*;
use super::state::RtcState;
use crate::register;

/// The registers, and the time that they show.
pub(super) struct Clock {
    host: Box<dyn Fn() -> SystemTime + Send>,
    /// Seconds by which the guest has set the clock off the host's.
    offset: i64,
    /// The time as of the last read of register A.
    snapshot: i64,
    /// The second as of the last read of register C.
    seen: i64,
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

impl Clock {
    pub(super) fn new(host: Box<dyn Fn() -> SystemTime + Send>) -> Self {
        let mut clock = Self {
            host,
            offset: 0,
            snapshot: i64::MIN,
            seen: 0,
            index: 0,
            status_a: A_DEFAULT,
            status_b: B_24H,
            cmos: [0; CMOS_SIZE],
            sets: 0,
        };
        clock.seen = clock.now();
        clock
    }

    pub(super) fn state(&self) -> RtcState {
        let Self { host: _, offset, snapshot, seen, index, status_a, status_b, cmos, sets: _ } = *self;
        RtcState { offset, snapshot, seen, index, status_a, status_b, cmos }
    }

    pub(super) fn take_over(&mut self, state: RtcState) {
        let RtcState { offset, snapshot, seen, index, status_a, status_b, cmos } = state;
        (self.offset, self.snapshot, self.seen) = (offset, snapshot, seen);
        (self.index, self.status_a, self.status_b, self.cmos) = (index, status_a, status_b, cmos);
    }

    /// The registers as after power-on. The battery keeps time and RAM; the guest's unfinished setting of the clock ends.
    pub(super) fn reset(&mut self) {
        (self.index, self.status_a, self.status_b) = (0, A_DEFAULT, B_24H);
        (self.snapshot, self.seen) = (i64::MIN, self.now());
    }

    /// How often the guest has set the clock.
    pub(super) fn sets(&self) -> u64 {
        self.sets
    }

    /// Seconds since 1970, by the host's clock.
    fn host(&self) -> i64 {
        match (self.host)().duration_since(UNIX_EPOCH) {
            Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |s| -s),
        }
    }

    /// Seconds since 1970 that the clock shows.
    fn now(&self) -> i64 {
        self.host().saturating_add(self.offset)
    }

    /// The time that a read of a time register shows: the snapshot, unless it is old.
    fn shown(&self) -> i64 {
        let now = self.now();
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
        self.offset = time.to_unix().saturating_sub(self.host());
        self.snapshot = i64::MIN;
        self.sets += 1;
    }

    fn read_data(&mut self) -> u8 {
        match self.index {
            STATUS_A => {
                self.snapshot = self.now();
                self.status_a
            }
            STATUS_B => self.status_b,
            STATUS_C => {
                let now = self.now();
                let updated = self.status_b & B_SET == 0 && std::mem::replace(&mut self.seen, now) != now;
                if updated { C_UPDATED } else { 0 }
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
            STATUS_A => self.status_a = value & !A_UIP,
            STATUS_B => {
                let value = value & !B_ABSENT;
                if value & !self.status_b & B_SET != 0 {
                    self.freeze();
                }
                let thaws = self.status_b & !value & B_SET != 0;
                self.status_b = value;
                if thaws {
                    self.thaw();
                }
            }
            STATUS_C | STATUS_D => {}
            index if Self::is_time(index) && self.status_b & B_SET == 0 => {
                self.freeze();
                self.set_ram(index, value);
                self.thaw();
            }
            index => self.set_ram(index, value),
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
