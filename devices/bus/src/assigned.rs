//! What a machine gives a device: a handle for each thing that it asked for.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_memory::{Dma, RegisterPage};

use crate::request::ResourceName;
use crate::{DeviceError, Effect, Event, EventSink, Interrupt, MessageInterrupt, Mmio};

/// What the machine gave a device, each under the name by which the device asked for it. Clones hold the same things.
///
/// A machine's board makes it; a device takes out of it what it needs when it is
/// [attached](crate::Device::attach).
#[derive(Clone, Debug)]
pub struct Assigned {
    dma: Dma,
    events: EventSink,
    registers: Vec<RegisterRange>,
    interrupts: Vec<(ResourceName, Interrupt)>,
    doorbells: Vec<(ResourceName, Arc<Event>)>,
    messages: Vec<(ResourceName, Vec<MessageInterrupt>)>,
    windows: Vec<(ResourceName, RangeInclusive<u64>)>,
}

impl Assigned {
    /// Begins with a view of guest RAM and a place to report to, and nothing else.
    pub fn new(dma: Dma, events: EventSink) -> Self {
        let (registers, interrupts, doorbells, messages, windows) = Default::default();
        Self { dma, events, registers, interrupts, doorbells, messages, windows }
    }

    /// Adds registers.
    pub fn add_registers(&mut self, registers: RegisterRange) {
        self.registers.push(registers);
    }

    /// Adds an interrupt.
    pub fn add_interrupt(&mut self, name: impl Into<ResourceName>, interrupt: Interrupt) {
        self.interrupts.push((name.into(), interrupt));
    }

    /// Adds a doorbell.
    pub fn add_doorbell(&mut self, name: impl Into<ResourceName>, doorbell: Arc<Event>) {
        self.doorbells.push((name.into(), doorbell));
    }

    /// Adds messages.
    pub fn add_messages(&mut self, name: impl Into<ResourceName>, messages: Vec<MessageInterrupt>) {
        self.messages.push((name.into(), messages));
    }

    /// Adds addresses to hand on.
    pub fn add_window(&mut self, name: impl Into<ResourceName>, addresses: RangeInclusive<u64>) {
        self.windows.push((name.into(), addresses));
    }

    /// The device's view of guest RAM.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    /// Where the device reports what the VMM should know.
    pub fn events(&self) -> &EventSink {
        &self.events
    }

    /// The registers `name`.
    pub fn registers(&self, name: impl Into<ResourceName>) -> Result<&RegisterRange, DeviceError> {
        let name = name.into();
        self.registers
            .iter()
            .find(|registers| registers.name() == name)
            .ok_or_else(|| missing("registers", name))
    }

    /// The interrupt `name`.
    pub fn interrupt(&self, name: impl Into<ResourceName>) -> Result<&Interrupt, DeviceError> {
        find(&self.interrupts, "interrupt", name.into())
    }

    /// The doorbell `name`: readable after the guest has rung.
    pub fn doorbell(&self, name: impl Into<ResourceName>) -> Result<&Arc<Event>, DeviceError> {
        find(&self.doorbells, "doorbell", name.into())
    }

    /// The messages `name`, as many as were asked for.
    pub fn messages(&self, name: impl Into<ResourceName>) -> Result<&[MessageInterrupt], DeviceError> {
        find(&self.messages, "messages", name.into()).map(Vec::as_slice)
    }

    /// The addresses `name` to hand on.
    pub fn window(&self, name: impl Into<ResourceName>) -> Result<&RangeInclusive<u64>, DeviceError> {
        find(&self.windows, "window", name.into())
    }

    /// All registers, in the order in which they were asked for.
    pub fn all_registers(&self) -> &[RegisterRange] {
        &self.registers
    }
}

fn find<'a, T>(all: &'a [(ResourceName, T)], kind: &str, name: ResourceName) -> Result<&'a T, DeviceError> {
    let found = all.iter().find(|(other, _)| *other == name);
    found.map(|(_, it)| it).ok_or_else(|| missing(kind, name))
}

fn missing(kind: &str, name: ResourceName) -> DeviceError {
    DeviceError::new(format!("the machine gave no {kind} {name:?}", name = name.to_string()))
}

/// Names a range of addresses in its machine, for [`Effect::Remap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RangeId(pub u32);

/// A range of addresses that a device answers. Clones are the same range.
#[derive(Clone)]
pub struct RegisterRange(Arc<Range>);

struct Range {
    name: ResourceName,
    id: RangeId,
    page: Option<Arc<RegisterPage>>,
    state: Mutex<RangeState>,
}

#[derive(Default)]
struct RangeState {
    port: Option<Arc<dyn Mmio>>,
    base: Option<u64>,
    wanted: Option<u64>,
}

impl RegisterRange {
    /// A range `name` at `base`, with the page from which the guest reads if there is one. No device answers it yet.
    pub fn new(
        name: impl Into<ResourceName>,
        id: RangeId,
        base: Option<u64>,
        page: Option<Arc<RegisterPage>>,
    ) -> Self {
        let state = Mutex::new(RangeState { port: None, base, wanted: base });
        Self(Arc::new(Range { name: name.into(), id, page, state }))
    }

    fn state(&self) -> MutexGuard<'_, RangeState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its name in the device.
    pub fn name(&self) -> ResourceName {
        self.0.name
    }

    /// Its name in the machine.
    pub fn id(&self) -> RangeId {
        self.0.id
    }

    /// The page from which the guest reads, if the device asked for one.
    pub fn page(&self) -> Option<&Arc<RegisterPage>> {
        self.0.page.as_ref()
    }

    /// Has `port` answer the guest. The device calls this for each range when it is attached.
    pub fn answer(&self, port: Arc<dyn Mmio>) {
        self.state().port = Some(port);
    }

    /// Returns what answers the guest; `None` if the device has not called [`answer`](Self::answer).
    pub fn port(&self) -> Option<Arc<dyn Mmio>> {
        self.state().port.clone()
    }

    /// The effect of a write that moves this range to `base`, or takes it out of the address space (`None`). The
    /// machine carries it out once the device has returned, or leaves the range where it is if the new place is RAM
    /// or another device's: [`base`](Self::base) then says so. The effect of any range moves all ranges of the device
    /// that are wanted elsewhere. A device that moves ranges while it is [restored](crate::Device::restore) drops the
    /// effect: the machine looks by itself.
    pub fn move_to(&self, base: Option<u64>) -> Effect {
        self.state().wanted = base;
        Effect::Remap(self.0.id)
    }

    /// The first address of a movable range at present; `None` while it is in no address space.
    pub fn base(&self) -> Option<u64> {
        self.state().base
    }

    /// Lets go of what answers the range, which may hold the range itself. Called by the machine when the device has
    /// been disconnected.
    pub fn disconnected(&self) {
        let port = self.state().port.take();
        // What it does when it is dropped is its own affair: not with the lock held.
        drop(port);
    }

    /// Where the device wants the range, for the machine.
    pub fn wanted(&self) -> Option<u64> {
        self.state().wanted
    }

    /// Notes that the range is at `base` now, whatever the device wants. Called by the machine, which says with
    /// [`served`](Self::served) what it made of that.
    pub fn now_at(&self, base: Option<u64>) {
        self.state().base = base;
    }

    /// Notes that the machine has done about `wanted` what it could: the range is wanted where it is, unless the device
    /// has asked for something else meanwhile. Called by the machine.
    pub fn served(&self, wanted: Option<u64>) {
        let mut state = self.state();
        if state.wanted == wanted {
            state.wanted = state.base;
        }
    }

    /// Notes that the range is at `base` now and wanted there. Called by the machine.
    pub fn moved(&self, base: Option<u64>) {
        let mut state = self.state();
        (state.base, state.wanted) = (base, base);
    }
}

impl fmt::Debug for RegisterRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let base = self.base();
        f.debug_struct("RegisterRange")
            .field("name", &self.0.name)
            .field("base", &base)
            .finish_non_exhaustive()
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
