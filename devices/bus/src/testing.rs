//! A board for tests of devices: it assigns whatever a device asks for, and shows what comes of it. No hypervisor, no
//! bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap, RegisterPage};

use crate::request::ResourceName;
use crate::{
    Assigned, Device, DeviceError, DeviceEvent, Effect, Event, EventSink, Interrupt, InterruptTarget,
    MessageInterrupt, MessageTarget, Mmio, MsiMessage, NodeKind, Placement, RangeId, RegisterRange, Requires,
};

/// The machine around a device under test.
///
/// ```
/// use ossature_bus::testing::TestBoard;
/// use ossature_bus::{InterruptRequest, RegistersRequest, Requires};
///
/// let mut board = TestBoard::default();
/// let assigned = board.assign(&Requires::new().interrupt(InterruptRequest::level("irq")));
/// assigned.interrupt("irq")?.assert()?;
/// assert!(board.is_asserted("irq"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TestBoard {
    dma: Dma,
    reports: Arc<Mutex<Vec<DeviceEvent>>>,
    registers: Vec<RegisterRange>,
    lines: BTreeMap<ResourceName, Arc<Line>>,
    doorbells: BTreeMap<ResourceName, Arc<Event>>,
    messages: BTreeMap<ResourceName, Vec<Arc<TestMessage>>>,
}

/// A message-signalled interrupt that reaches nobody but the test.
#[derive(Debug)]
struct TestMessage {
    /// What the device signals.
    event: Arc<Event>,
    state: Mutex<MessageState>,
}

#[derive(Debug)]
struct MessageState {
    message: MsiMessage,
    masked: bool,
    pending: bool,
}

impl TestMessage {
    fn new() -> Option<Self> {
        let state = MessageState { message: MsiMessage::default(), masked: true, pending: false };
        Some(Self { event: event()?, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, MessageState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The message, if it has been signalled since this was last called and reaches the guest.
    fn take(&self) -> Option<MsiMessage> {
        let mut state = self.state();
        if self.event.take().is_ok_and(|signals| signals > 0) {
            state.pending = true;
        }
        let sent = !state.masked && std::mem::take(&mut state.pending);
        sent.then_some(state.message)
    }
}

impl InterruptTarget for TestMessage {
    fn signal(&self) -> std::io::Result<()> {
        self.event.signal()
    }

    fn set_level(&self, asserted: bool) -> std::io::Result<()> {
        if asserted { self.event.signal() } else { Ok(()) }
    }

    fn event(&self) -> Option<&Arc<Event>> {
        Some(&self.event)
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        None
    }
}

impl MessageTarget for TestMessage {
    fn set_message(&self, message: MsiMessage) -> std::io::Result<()> {
        self.state().message = message;
        Ok(())
    }

    fn set_masked(&self, masked: bool) -> std::io::Result<()> {
        self.state().masked = masked;
        Ok(())
    }

    fn is_pending(&self) -> bool {
        let mut state = self.state();
        if state.masked && self.event.take().is_ok_and(|signals| signals > 0) {
            state.pending = true;
        }
        state.masked && state.pending
    }

    fn forget_pending(&self) {
        let mut state = self.state();
        if state.masked {
            // A failure leaves it pending.
            let _ = self.event.take();
            state.pending = false;
        }
    }
}

/// An interrupt line whose edges are counted and whose level is kept.
#[derive(Debug)]
struct Line {
    edges: Arc<Event>,
    asserted: Mutex<bool>,
    resample: Option<Arc<Event>>,
}

impl InterruptTarget for Line {
    fn signal(&self) -> std::io::Result<()> {
        self.edges.signal()
    }

    fn set_level(&self, asserted: bool) -> std::io::Result<()> {
        let mut level = self.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        if asserted && !*level {
            self.edges.signal()?;
        }
        *level = asserted;
        Ok(())
    }

    fn event(&self) -> Option<&Arc<Event>> {
        Some(&self.edges)
    }

    fn resample(&self) -> Option<&Arc<Event>> {
        self.resample.as_ref()
    }
}

/// A board with a page of RAM.
impl Default for TestBoard {
    fn default() -> Self {
        // A range of one page always fits.
        let ram = GuestMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap_or_default();
        Self::with_ram(Dma::new(Arc::new(ram)))
    }
}

impl TestBoard {
    /// A board with this RAM.
    pub fn with_ram(dma: Dma) -> Self {
        let (reports, registers, lines, doorbells, messages) = Default::default();
        Self { dma, reports, registers, lines, doorbells, messages }
    }

    /// Makes everything that `requires` names, as the machine does before it attaches the device. Where the host has no
    /// descriptor or page left, the resource is missing, and the device says so.
    pub fn assign(&mut self, requires: &Requires) -> Assigned {
        let reports = self.reports.clone();
        let events = EventSink::new(move |event| {
            reports.lock().unwrap_or_else(PoisonError::into_inner).push(event);
        });
        let mut assigned = Assigned::new(self.dma.clone(), events);
        for request in &requires.registers {
            let id = RangeId(self.registers.len() as u32);
            let page = if request.page { RegisterPage::new().ok().map(Arc::new) } else { None };
            let base = match request.placement {
                _ if request.unplaced => None,
                Placement::Fixed(base) => Some(base),
                Placement::Any => Some(0xd000_0000 + u64::from(id.0) * 0x10_0000),
            };
            let registers = RegisterRange::new(request.name, id, base, page);
            self.registers.push(registers.clone());
            assigned.add_registers(registers);
            for bell in request.doorbells.iter().filter(|bell| !bell.ignored) {
                let Some(event) = event() else { continue };
                self.doorbells.insert(bell.name, event.clone());
                assigned.add_doorbell(bell.name, event);
            }
        }
        for request in &requires.interrupts {
            let (Some(edges), resample) = (event(), request.resample.then(event).flatten()) else { continue };
            let line = Arc::new(Line { edges, asserted: Mutex::new(false), resample });
            self.lines.insert(request.name, line.clone());
            assigned.add_interrupt(request.name, Interrupt::new(line));
        }
        for request in &requires.messages {
            let messages = (0..request.count).map(|_| TestMessage::new().map(Arc::new));
            let Some(messages) = messages.collect::<Option<Vec<_>>>() else { continue };
            let handles = messages.iter().map(|message| MessageInterrupt::new(Arc::clone(message))).collect();
            assigned.add_messages(request.name, handles);
            self.messages.insert(request.name, messages);
        }
        for (index, request) in (0..).zip(&requires.windows) {
            let first = if request.high { 1 << 40 } else { 0xe000_0000 };
            let base = (first + request.size * index).next_multiple_of(request.size);
            assigned.add_window(request.name, base..=base + (request.size - 1));
        }
        assigned
    }

    /// Assigns what `device` requires and attaches it.
    pub fn attach(&mut self, device: &mut dyn Device) -> Result<NodeKind, DeviceError> {
        let assigned = self.assign(&device.requires());
        device.attach(assigned)
    }

    /// The device's view of RAM.
    pub fn dma(&self) -> &Dma {
        &self.dma
    }

    /// The registers, in the order in which they were asked for.
    pub fn registers(&self) -> &[RegisterRange] {
        &self.registers
    }

    /// What answers the registers `name`.
    pub fn port(&self, name: impl Into<ResourceName>) -> Option<Arc<dyn Mmio>> {
        let name = name.into();
        self.registers.iter().find(|registers| registers.name() == name)?.port()
    }

    /// The event that counts the edges of interrupt `name`.
    pub fn edges(&self, name: impl Into<ResourceName>) -> Option<Arc<Event>> {
        self.lines.get(&name.into()).map(|line| line.edges.clone())
    }

    /// Returns true if the level line `name` is asserted.
    pub fn is_asserted(&self, name: impl Into<ResourceName>) -> bool {
        let level = |line: &Arc<Line>| *line.asserted.lock().unwrap_or_else(PoisonError::into_inner);
        self.lines.get(&name.into()).is_some_and(level)
    }

    /// The doorbell `name`, as the guest rings it.
    pub fn doorbell(&self, name: impl Into<ResourceName>) -> Option<Arc<Event>> {
        self.doorbells.get(&name.into()).cloned()
    }

    /// The message `index` of those `name`, if it has been sent since this was last called: what is signalled while it
    /// is masked waits.
    pub fn take_message(&self, name: impl Into<ResourceName>, index: usize) -> Option<MsiMessage> {
        self.messages.get(&name.into())?.get(index)?.take()
    }

    /// The event that the device signals for message `index` of those `name`, to wait for.
    pub fn message_event(&self, name: impl Into<ResourceName>, index: usize) -> Option<Arc<Event>> {
        self.messages.get(&name.into())?.get(index).map(|message| message.event.clone())
    }

    /// Carries out a write's effect as a machine without RAM and other devices does: ranges of the board are moved to
    /// where they are wanted. Returns false for any other effect.
    pub fn carry_out(&self, effect: Effect) -> bool {
        let Effect::Remap(_) = effect else { return false };
        self.registers.iter().for_each(|range| range.moved(range.wanted()));
        true
    }

    /// What the device has reported so far.
    pub fn reports(&self) -> Vec<DeviceEvent> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn event() -> Option<Arc<Event>> {
    Event::new().ok().map(Arc::new)
}
