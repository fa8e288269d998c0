//! The real-time clock of Arm machines, a PL031 (Arm DDI 0224).

mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use ossature_bus::state::StateError;
use ossature_bus::{
    Access, Assigned, BusFault, Device, DeviceError, DeviceState, Effect, EventLoop, Handover,
    InterruptRequest, MetricVisitor, MmioMut, NodeKind, RegistersRequest, Requires, Size, Syscall,
};

use super::SYSCALLS;
use super::alarm::{Alarm, Timed, Turns};
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

/// A clock with registers in a page of memory: seconds since 1970 in 32 bits, by the host's UTC plus what the guest has set
/// it off by, and an alarm, which raises an edge interrupt when the clock reaches the match register.
///
/// While the alarm is masked or pending, no timer of the host runs. What happens while the machine is paused counts once
/// when it goes on. Saved are the registers and how far the guest has set the clock off the host's, as of an
/// [`Rtc`](crate::Rtc): once restored, it shows the host's time as it is then, off by as much; an alarm that has passed in
/// the meantime is raised. The battery lasts. Its turns are taken as an `Rtc`'s, too.
#[derive(Debug)]
pub struct Pl031 {
    id: String,
    port: Arc<Mutex<Counter>>,
    turns: Turns<Counter>,
}

impl Pl031 {
    /// A clock named `id` that follows the host's.
    pub fn new(id: impl Into<String>) -> Self {
        Self::with_clock(id, SystemTime::now)
    }

    /// A clock named `id` that follows `now`, which advances as the host's clock does.
    pub fn with_clock(id: impl Into<String>, now: impl Fn() -> SystemTime + Send + 'static) -> Self {
        let port = Arc::new(Mutex::new(Counter::new(Box::new(now))));
        Self { id: id.into(), port, turns: Turns::new() }
    }

    /// The same clock with its turns on `event_loop`, which the caller runs.
    #[must_use]
    pub fn on(mut self, event_loop: &EventLoop) -> Self {
        self.turns.set_loop(event_loop);
        self
    }

    fn counter(&self) -> MutexGuard<'_, Counter> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the clock's part in its machine.
    fn end(&mut self) {
        self.counter().run(false);
        // In this order: the loop watches the timer.
        self.turns.end();
        self.counter().alarm = None;
    }
}

impl Drop for Pl031 {
    fn drop(&mut self) {
        self.end();
    }
}

/// The registers.
struct Counter {
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

impl Counter {
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

    /// The registers as after power-on. The battery keeps the time.
    fn reset(&mut self) {
        (self.load, self.matches, self.mask) = (0, 0, 0);
        (self.pending, self.raised) = (false, false);
        self.seen = self.now();
        self.settle();
    }

    fn state(&self) -> Pl031State {
        let &Self { offset, load, matches, mask, seen, pending, raised, .. } = self;
        Pl031State { offset, load, matches, mask, seen, pending, raised }
    }

    fn take_over(&mut self, state: Pl031State) {
        let Pl031State { offset, load, matches, mask, seen, pending, raised } = state;
        (self.offset, self.load, self.matches, self.mask) = (offset, load, matches, mask);
        (self.seen, self.pending, self.raised) = (seen, pending, raised);
    }

    fn run(&mut self, running: bool) {
        self.running = running;
        self.settle();
    }

    fn host(&self) -> Moment {
        (self.host)().into()
    }

    /// The time that the clock shows.
    fn now(&self) -> u32 {
        (self.host().second as u32).wrapping_add(self.offset)
    }

    fn is_interrupting(&self) -> bool {
        self.pending && self.mask & ALARM != 0
    }

    /// How long until the alarm, if it is awaited.
    fn until_alarm(&self) -> Option<Duration> {
        if self.pending || self.mask & ALARM == 0 || !self.running {
            return None;
        }
        let host = self.host();
        let left = self.matches.wrapping_sub((host.second as u32).wrapping_add(self.offset));
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
                self.pending |= value == self.now();
            }
            LR => {
                self.load = value;
                self.offset = value.wrapping_sub(self.host().second as u32);
                // What lies between the old time and the new has not happened.
                self.seen = self.now();
                self.pending |= self.matches == self.seen;
                self.sets += 1;
            }
            // It runs, and cannot be stopped.
            CR => {}
            IMSC => self.mask = value & ALARM,
            ICR => self.pending &= value & ALARM == 0,
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
        let now = self.now();
        let seen = std::mem::replace(&mut self.seen, now);
        let passed = now.wrapping_sub(seen);
        // The host's clock may go backwards: then nothing has passed.
        if passed <= u32::MAX / 2 && self.matches.wrapping_sub(seen).wrapping_sub(1) < passed {
            self.pending = true;
        }
        let raises = self.is_interrupting() && self.running && !self.raised;
        self.raised = self.is_interrupting() && (self.raised || raises);
        let delay = self.until_alarm();
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

impl Device for Pl031 {
    fn id(&self) -> &str {
        &self.id
    }

    fn requires(&self) -> Requires {
        Requires::new()
            .registers(RegistersRequest::memory(REGISTERS, LEN))
            .interrupt(InterruptRequest::edge(IRQ).rare())
    }

    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        let registers = assigned.registers(REGISTERS)?;
        let interrupt = assigned.interrupt(IRQ)?.clone();
        let turns = self.turns.begin(&self.id, &self.port, &assigned)?;
        let alarm = Alarm::new(interrupt, assigned.events().clone(), turns);
        registers.answer(self.port.clone());
        let mut counter = self.counter();
        counter.alarm = Some(alarm);
        counter.reset();
        drop(counter);
        Ok(NodeKind::Pl031)
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.counter().run(false);
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.counter().run(true);
        Ok(())
    }

    /// The battery keeps the time.
    fn reset(&mut self) -> Result<(), DeviceError> {
        self.counter().reset();
        Ok(())
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Saved(Handover::new(self.counter().state().save())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let state = Pl031State::load(&handover.state)?;
        self.counter().take_over(state);
        Ok(())
    }

    fn detach(&mut self) -> Result<(), DeviceError> {
        self.end();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        SYSCALLS
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        visitor.counter("clock_sets", "Times that the guest has set the clock.", self.counter().sets);
    }
}

#[cfg(test)]
mod tests;
