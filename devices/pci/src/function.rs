//! What the author of a PCI device needs: a function that does all of configuration space.

use std::sync::Arc;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{
    Access, Assigned, BusFault, DeviceError, Effect, MessagesRequest, Mmio, NodeKind, RegistersRequest,
    Requires,
};

use crate::PciBus;
use crate::bar::{self, Bar};
use crate::capability::{self, Bars, Capability};
use crate::msix::{MsixBar, MsixLayout, Vectors};
use crate::port::{FunctionPort, Parts};
use crate::space::{ConfigSpace, reg};
use crate::state::FunctionState;

/// The name of a function's messages.
const MESSAGES: &str = "msix";
/// The name of the range of a function without BARs, which no guest ever reaches: the machine knows by it whose function it
/// is that a guest ejects.
const NO_BAR: &str = "no-bar";

/// The requester id of function 0 of a slot on bus 0.
const fn requester(slot: u8) -> u32 {
    (slot as u32) << 3
}

/// What answers it.
struct Nothing;

impl Mmio for Nothing {
    fn read(&self, at: Access) -> Result<u64, BusFault> {
        Ok(at.size.mask())
    }

    fn write(&self, _: Access, _: u64) -> Result<Effect, BusFault> {
        Ok(Effect::None)
    }
}

/// What a function is: everything of configuration space that is constant.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FunctionInfo {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Class, subclass and programming interface, a byte each, the class the highest.
    pub class: u32,
    /// Vendor and id of the subsystem.
    pub subsystem: (u16, u16),
    /// The ranges that it answers.
    pub bars: Vec<Bar>,
    /// Message-signalled interrupts.
    pub msix: Option<MsixLayout>,
    /// Capabilities beside that of MSI-X.
    pub capabilities: Vec<Capability>,
}

impl FunctionInfo {
    /// A function with these ids, of this class, without anything else.
    pub fn new(vendor: u16, device: u16, class: u32) -> Self {
        let (bars, capabilities) = (Vec::new(), Vec::new());
        Self { vendor, device, revision: 0, class, subsystem: (0, 0), bars, msix: None, capabilities }
    }

    /// The same of this revision.
    #[must_use]
    pub fn revision(mut self, revision: u8) -> Self {
        self.revision = revision;
        self
    }

    /// The same in this subsystem.
    #[must_use]
    pub fn subsystem(mut self, vendor: u16, id: u16) -> Self {
        self.subsystem = (vendor, id);
        self
    }

    /// The same with one more BAR.
    #[must_use]
    pub fn bar(mut self, bar: Bar) -> Self {
        self.bars.push(bar);
        self
    }

    /// The same with MSI-X.
    #[must_use]
    pub fn msix(mut self, layout: MsixLayout) -> Self {
        self.msix = Some(layout);
        self
    }

    /// The same with one more capability.
    #[must_use]
    pub fn capability(mut self, capability: Capability) -> Self {
        self.capabilities.push(capability);
        self
    }

    fn check(&self) -> Result<(), DeviceError> {
        bar::check(&self.bars)?;
        let size_of = |index| self.bars.iter().find(|bar| bar.index == index).map(|bar| bar.size);
        self.msix.map_or(Ok(()), |layout| layout.check(size_of(layout.bar)))
    }

    /// Its configuration space after a reset, where MSI-X is in there, and the capabilities that ports answer.
    fn define(&self) -> Result<(ConfigSpace, Option<u8>, Vec<capability::Answered>), DeviceError> {
        let mut space = ConfigSpace::new();
        space.allow_header();
        space.define(reg::VENDOR, &self.vendor.to_le_bytes());
        space.define(reg::DEVICE, &self.device.to_le_bytes());
        space.define(reg::REVISION, &[self.revision]);
        let [interface, subclass, class, _] = self.class.to_le_bytes();
        space.define(reg::CLASS, &[interface, subclass, class]);
        space.define(reg::SUBSYSTEM_VENDOR, &self.subsystem.0.to_le_bytes());
        space.define(reg::SUBSYSTEM, &self.subsystem.1.to_le_bytes());
        self.bars.iter().for_each(|bar| bar.define(&mut space));
        let msix = self.msix.as_ref().map(MsixLayout::capability);
        let list: Vec<Capability> = msix.into_iter().chain(self.capabilities.iter().cloned()).collect();
        let (starts, answered) = capability::define(&list, &mut space)?;
        let msix = starts.first().copied().filter(|_| self.msix.is_some());
        Ok((space, msix, answered))
    }
}

/// The PCI side of a device: function 0 of a slot of a bus.
///
/// A [`Device`](ossature_bus::Device) has one and passes its own life on to it. The function is in no guest's sight
/// before it is [resumed](Self::resume) for the first time; a guest that runs by then is told.
#[derive(Debug)]
pub struct Function {
    id: String,
    bus: PciBus,
    info: FunctionInfo,
    wanted: Option<u8>,
    attached: Option<Attached>,
}

#[derive(Debug)]
struct Attached {
    slot: u8,
    port: Arc<FunctionPort>,
    /// The guest is to be told of it when it is resumed.
    tell: bool,
}

impl Function {
    /// The function of the device `id` on `bus`, in the lowest slot that is free when it is attached.
    pub fn new(id: impl Into<String>, bus: &PciBus, info: FunctionInfo) -> Self {
        Self { id: id.into(), bus: bus.clone(), info, wanted: None, attached: None }
    }

    /// In this slot, 1 to 31. A machine that restores a state needs its functions where they were.
    #[must_use]
    pub fn at(mut self, slot: u8) -> Self {
        self.set_slot(slot);
        self
    }

    /// Puts it in this slot when it is attached the next time: see [`at`](Self::at).
    pub fn set_slot(&mut self, slot: u8) {
        self.wanted = Some(slot);
    }

    /// The id of its device.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Its slot, while it is attached.
    pub fn slot(&self) -> Option<u8> {
        self.attached.as_ref().map(|attached| attached.slot)
    }

    /// What it needs of the machine: its bus, a range for each BAR, and messages.
    pub fn requires(&self) -> Requires {
        let ranges = self.info.bars.iter().map(Bar::request);
        let no_bar = RegistersRequest::memory(NO_BAR, 0x1000).unplaced();
        let ranges = ranges.chain(self.info.bars.is_empty().then_some(no_bar));
        let requires = ranges.fold(Requires::new().on(self.bus.name()), Requires::registers);
        match self.info.msix {
            Some(layout) => requires.messages(MessagesRequest::new(MESSAGES, layout.vectors)),
            None => requires,
        }
    }

    /// Joins the bus. `ports` makes what answers each BAR, in their order, and gets the vectors to signal. Offsets of
    /// MSI-X are not passed on to them.
    pub fn attach(
        &mut self,
        assigned: &Assigned,
        ports: impl FnOnce(&Vectors) -> Result<Vec<Arc<dyn Mmio>>, DeviceError>,
    ) -> Result<NodeKind, DeviceError> {
        let named = |id: &str, e: DeviceError| e.context(id);
        if self.attached.is_some() {
            return Err(DeviceError::new(format!("{}: attached before", self.id)));
        }
        self.info.check().map_err(|e| named(&self.id, e))?;
        let (slot, tell) = self.bus.reserve(&self.id, self.wanted).map_err(|e| named(&self.id, e.into()))?;
        match self.connect(slot, assigned, ports) {
            Ok(port) => {
                self.attached = Some(Attached { slot, port: Arc::new(port), tell });
                Ok(NodeKind::Hidden)
            }
            Err(e) => {
                self.bus.release(slot);
                Err(named(&self.id, e))
            }
        }
    }

    fn connect(
        &self,
        slot: u8,
        assigned: &Assigned,
        ports: impl FnOnce(&Vectors) -> Result<Vec<Arc<dyn Mmio>>, DeviceError>,
    ) -> Result<FunctionPort, DeviceError> {
        let (space, msix, answered) = self.info.define()?;
        let messages = if msix.is_some() { assigned.messages(MESSAGES)? } else { &[] };
        let vectors = Vectors::new(messages, requester(slot), assigned.events().clone());
        let ports = ports(&vectors)?;
        if ports.len() != self.info.bars.len() {
            let (ports, bars) = (ports.len(), self.info.bars.len());
            return Err(DeviceError::new(format!("{ports} ports for {bars} BARs")));
        }
        let (mut ranges, mut bars) = (Vec::new(), Vec::new());
        for (bar, port) in self.info.bars.iter().zip(ports) {
            let port: Arc<dyn Mmio> = match self.info.msix {
                Some(layout) if layout.bar == bar.index => {
                    Arc::new(MsixBar { layout, vectors: vectors.clone(), port })
                }
                _ => port,
            };
            let range = assigned.registers(bar.name())?;
            range.answer(Arc::clone(&port));
            ranges.push((bar.clone(), range.clone()));
            bars.push((bar.index, bar.size, port));
        }
        let id = match ranges.first() {
            Some((_, range)) => range.id(),
            None => {
                let range = assigned.registers(NO_BAR)?;
                range.answer(Arc::new(Nothing));
                range.id()
            }
        };
        let (bars, msix, windows) = (Bars(bars), msix.map(|at| (at, vectors)), self.bus.windows());
        Ok(FunctionPort::new(Parts { space, id: Some(id), ranges, bars, answered, msix, windows }))
    }

    fn port(&self) -> Result<&Arc<FunctionPort>, DeviceError> {
        let loose = || DeviceError::new(format!("{} is not attached to a machine", self.id));
        self.attached.as_ref().map(|attached| &attached.port).ok_or_else(loose)
    }

    /// Its device goes on: at the first time, the guest sees it.
    pub fn resume(&mut self) -> Result<(), DeviceError> {
        self.port()?;
        if let Some(Attached { slot, port, tell }) = &mut self.attached {
            if !port.is_ejected() {
                self.bus.show(*slot, port, std::mem::take(tell));
            }
        }
        Ok(())
    }

    /// Returns to the state after [`attach`](Self::attach).
    pub fn reset(&mut self) -> Result<(), DeviceError> {
        self.port()?.reset();
        Ok(())
    }

    /// Its state: configuration space, and MSI-X with what is pending. While vCPUs do not run.
    pub fn save(&self) -> Result<SavedState<'static>, DeviceError> {
        let slot = self.slot().unwrap_or(0);
        Ok(FunctionState::of(slot, self.port()?).save())
    }

    /// Checks a state for [`restore`](Self::restore), which cannot fail then.
    pub fn check(&self, state: &SavedState<'_>) -> Result<FunctionState, StateError> {
        let Some(Attached { slot, port, .. }) = &self.attached else {
            return Err(StateError::Unsupported { reason: "it is not attached to a machine" });
        };
        let state = FunctionState::read(state)?;
        state.check(*slot, port)?;
        Ok(state)
    }

    /// Becomes the function that gave the state. The machine moves its ranges.
    pub fn restore(&mut self, state: FunctionState) {
        if let Some(Attached { slot, port, tell }) = &mut self.attached {
            *tell = false;
            let ejected = state.ejected;
            state.restore(port);
            if ejected {
                self.bus.hide(*slot, port);
            }
        }
    }

    /// Leaves the bus. A guest that has not ejected the function itself is told.
    pub fn detach(&mut self) -> Result<(), DeviceError> {
        self.port()?;
        self.leave();
        Ok(())
    }

    fn leave(&mut self) {
        if let Some(Attached { slot, port, .. }) = self.attached.take() {
            self.bus.leave(slot, &port);
        }
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.leave();
    }
}
