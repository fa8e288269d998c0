//! The real-time clock of Arm machines, a PL031 (Arm DDI 0224).

mod state;

use std::time::{Duration, SystemTime};

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, BusFault, Effect, InterruptRequest, MmioMut, NodeKind, RegistersRequest, Requires, Size,
};

use super::alarm::{Alarm, Timed};
use super::device::Chip;
use super::moment::Moment;
use crate::register::{IRQ, REGISTERS};
use state::Pl031State;

/// Bytes of memory that the registers take.
const LEN: u64 = 0x1000;

const DR: u64 = 0x00;
const MR: u64 = 0x04;
const LR: u64 = 0x08;
const CR: u64 = 0x0c;
const IMSC: u64 = 0x10;
const RIS: u64 = 0x14;
const MIS: u64 = 0x18;
const ICR: u64 = 0x1c;
const ID: u64 = 0xfe0;
/// RTCPeriphID and RTCPCellID, a byte in each word from [`ID`] on.
const IDS: [u8; 8] = [0x31, 0x10, 0x04, 0x00, 0x0d, 0xf0, 0x05, 0xb1];
/// The counter runs.
const ENABLED: u32 = 1;
/// The only interrupt, in IMSC, RIS, MIS and ICR.
const ALARM: u32 = 1;

/// The registers, and the time that they show.
pub struct Counter {
    host: Box<dyn Fn() -> SystemTime + Send>,
    /// Seconds by which the guest has set the clock off the host's.
    offset: u32,
    load: u32,
    matches: u32,
    mask: u32,
    /// The time up to which `pending` says what has happened.
    seen: u32,
    pending: bool,
    /// The guest has been interrupted, and the interrupt has been neither masked nor cleared since.
    raised: bool,
    /// The machine's vCPUs run.
    running: bool,
    /// While the clock is attached.
    alarm: Option<Alarm>,
    sets: u64,
}

impl std::fmt::Debug for Counter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Counter").field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl Chip for Counter {
    const NODE: NodeKind = NodeKind::Pl031;

    fn new(host: Box<dyn Fn() -> SystemTime + Send>) -> Self {
        let mut counter = Self {
            host,
            offset: 0,
            load: 0,
            matches: 0,
            mask: 0,
            seen: 0,
            pending: false,
            raised: false,
            running: false,
            alarm: None,
            sets: 0,
        };
        counter.seen = counter.now();
        counter
    }

    fn requires() -> Requires {
        Requires::new()
            .registers(RegistersRequest::memory(REGISTERS, LEN))
            .interrupt(InterruptRequest::edge(IRQ).rare())
    }

    fn reset(&mut self) {
        (self.load, self.matches, self.mask) = (0, 0, 0);
        (self.pending, self.raised) = (false, false);
        self.seen = self.now();
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
        let &Self { offset, load, matches, mask, seen, pending, raised, .. } = self;
        Pl031State { offset, load, matches, mask, seen, pending, raised }.save()
    }

    fn load(&mut self, state: &SavedState<'_>) -> Result<(), StateError> {
        let Pl031State { offset, load, matches, mask, seen, pending, raised } = Pl031State::load(state)?;
        (self.offset, self.load, self.matches, self.mask) = (offset, load, matches, mask);
        (self.seen, self.pending, self.raised) = (seen, pending, raised);
        Ok(())
    }

    fn sets(&self) -> u64 {
        self.sets
    }
}

impl Counter {
    fn host(&self) -> Moment {
        (self.host)().into()
    }

    /// The time that the clock shows at a point in the host's time.
    fn at(&self, host: Moment) -> u32 {
        (host.second as u32).wrapping_add(self.offset)
    }

    /// The time that the clock shows.
    fn now(&self) -> u32 {
        self.at(self.host())
    }

    fn is_interrupting(&self) -> bool {
        self.pending && self.mask & ALARM != 0
    }

    /// How long until the alarm, from a point in the host's time on, if it is awaited.
    fn until_alarm(&self, host: Moment) -> Option<Duration> {
        if self.pending || self.mask & ALARM == 0 || !self.running {
            return None;
        }
        let left = self.matches.wrapping_sub(self.at(host));
        // At this very second it has been, or was set too late.
        let left = if left == 0 { 1 << 32 } else { i64::from(left) };
        Some(host.until_second(host.second.saturating_add(left)))
    }

    fn get(&mut self, offset: u64) -> Option<u32> {
        self.settle();
        Some(match offset {
            DR => self.now(),
            MR => self.matches,
            LR => self.load,
            CR => ENABLED,
            IMSC => self.mask,
            RIS => u32::from(self.pending),
            MIS => u32::from(self.is_interrupting()),
            _ => (*IDS.get(usize::try_from(offset.checked_sub(ID)? / 4).ok()?)?).into(),
        })
    }

    fn set(&mut self, offset: u64, value: u32) -> Result<(), BusFault> {
        self.settle();
        match offset {
            MR => {
                self.matches = value;
                self.pending |= value == self.seen;
            }
            LR => {
                self.load = value;
                self.offset = value.wrapping_sub(self.host().second as u32);
                // What lies between the old time and the new has not happened.
                self.seen = value;
                self.pending |= self.matches == value;
                self.sets += 1;
            }
            // It runs, and cannot be stopped.
            CR => {}
            IMSC => self.mask = value & ALARM,
            ICR if value & ALARM != 0 => (self.pending, self.raised) = (false, false),
            ICR => {}
            DR | RIS | MIS => return Err(BusFault::ReadOnly),
            _ if offset >= ID => return Err(BusFault::ReadOnly),
            _ => return Err(BusFault::Unmapped),
        }
        self.settle();
        Ok(())
    }
}

impl Timed for Counter {
    fn settle(&mut self) {
        // One look at the host's clock: a second that ends between two would be lost.
        let host = self.host();
        let now = self.at(host);
        let seen = std::mem::replace(&mut self.seen, now);
        let passed = now.wrapping_sub(seen);
        // The host's clock may go backwards: then nothing has passed.
        if passed <= u32::MAX / 2 && self.matches.wrapping_sub(seen).wrapping_sub(1) < passed {
            self.pending = true;
        }
        let raises = self.is_interrupting() && self.running && !self.raised;
        self.raised = self.is_interrupting() && (self.raised || raises);
        let delay = self.until_alarm(host);
        if let Some(alarm) = &mut self.alarm {
            if raises {
                alarm.raise();
            }
            alarm.arm(delay);
        }
    }
}

/// The offset of a register. They are words, accessed as a whole.
fn register(at: Access) -> Result<u64, BusFault> {
    if at.size != Size::B4 {
        return Err(BusFault::Width);
    }
    if at.offset.is_multiple_of(4) && at.offset < LEN { Ok(at.offset) } else { Err(BusFault::Unmapped) }
}

impl MmioMut for Counter {
    fn read(&mut self, at: Access) -> Result<u64, BusFault> {
        match register(at)? {
            ICR => Err(BusFault::WriteOnly),
            offset => self.get(offset).map(u64::from).ok_or(BusFault::Unmapped),
        }
    }

    fn write(&mut self, at: Access, value: u64) -> Result<Effect, BusFault> {
        self.set(register(at)?, value as u32).map(|()| Effect::None)
    }
}

#[cfg(test)]
mod tests;
