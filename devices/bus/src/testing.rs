//! A board for tests of devices: it assigns whatever a device asks for, and shows what comes of it. No hypervisor, no
//! bus.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap, RegisterPage};

use crate::request::ResourceName;
use crate::{
    Assigned, Device, DeviceError, DeviceEvent, Event, EventSink, Interrupt, InterruptTarget, Mmio, NodeKind,
    Placement, RangeId, RegisterRange, Requires,
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
        let (reports, registers, lines, doorbells) = Default::default();
        Self { dma, reports, registers, lines, doorbells }
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

    /// What the device has reported so far.
    pub fn reports(&self) -> Vec<DeviceEvent> {
        self.reports.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

fn event() -> Option<Arc<Event>> {
    Event::new().ok().map(Arc::new)
}
