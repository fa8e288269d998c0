//! Connects one device to the hypervisor: makes what it asked for, at the places that the plan found.

use std::io;
use std::sync::Arc;

use ossature_bus::{
    AddressSpace, Assigned, DoorbellRequest, Event, EventSink, Interrupt, MessageInterrupt, RangeId,
    RegisterRange, RegistersRequest, Requires, Trigger,
};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Ram, RegisterPage};

use super::error::BuildError;
use super::lines::{Lines, Message, Resampled};
use super::plan::Place;
use crate::{Doorbell, DoorbellAddress, Ioeventfd, Irqfd, MemorySlot, Vm, VmError};

/// What connects a device with its machine. Dropping it disconnects the device.
#[derive(Debug, Default)]
pub(super) struct Wiring {
    pub(super) ranges: Vec<WiredRange>,
    _interrupts: Vec<Irqfd>,
    messages: Vec<Arc<Message>>,
}

/// A range of registers and what of it the hypervisor knows.
#[derive(Debug)]
pub(super) struct WiredRange {
    pub(super) registers: RegisterRange,
    pub(super) request: RegistersRequest,
    bells: Vec<Arc<Event>>,
    connected: Connected,
}

/// What the hypervisor knows of a range where it is now.
#[derive(Debug, Default)]
struct Connected {
    _page: Option<MemorySlot>,
    _doorbells: Vec<Ioeventfd>,
}

/// What devices that come together have from the same descriptor or mapping.
pub(super) struct Stock {
    /// So many pages of registers are still to come.
    wanted: usize,
    pages: Vec<RegisterPage>,
    /// For all doorbells that nobody waits for.
    ignored: Option<Arc<Event>>,
    /// The guest may read pages from when they are made: see [`Wiring::map_pages`].
    mapped: bool,
}

impl Stock {
    /// For devices that have `requires`.
    pub(super) fn new<'a>(requires: impl Iterator<Item = &'a Requires>, mapped: bool) -> Self {
        let wanted = requires.flat_map(|requires| &requires.registers).filter(|request| request.page).count();
        Self { wanted, pages: Vec::new(), ignored: None, mapped }
    }

    fn page(&mut self, id: &str) -> Result<Arc<RegisterPage>, BuildError> {
        if self.pages.is_empty() {
            self.pages = RegisterPage::several(self.wanted.max(1)).map_err(|source| host(id, source))?;
        }
        self.wanted = self.wanted.saturating_sub(1);
        self.pages.pop().map(Arc::new).ok_or_else(|| host(id, io::ErrorKind::OutOfMemory.into()))
    }

    fn bell(&mut self, id: &str, request: &DoorbellRequest) -> Result<Arc<Event>, BuildError> {
        match &self.ignored {
            _ if !request.ignored => event(id),
            Some(ignored) => Ok(Arc::clone(ignored)),
            None => Ok(Arc::clone(self.ignored.insert(event(id)?))),
        }
    }

    /// Makes the ranges of registers that a device asked for, with their pages.
    pub(super) fn ranges(
        &mut self,
        vm: &dyn Vm,
        id: &str,
        requires: &Requires,
        place: &Place,
        mut next: impl FnMut() -> RangeId,
    ) -> Result<Vec<WiredRange>, BuildError> {
        let mut ranges = Vec::with_capacity(requires.registers.len());
        for (request, &base) in requires.registers.iter().zip(&place.registers) {
            let page = request.page.then(|| self.page(id)).transpose()?;
            let bells = request.doorbells.iter().map(|bell| self.bell(id, bell)).collect::<Result<_, _>>()?;
            let mut range = WiredRange {
                registers: RegisterRange::new(request.name, next(), base, page),
                request: request.clone(),
                bells,
                connected: Connected::default(),
            };
            if self.mapped {
                range.connected._page = range.map_page(vm, base)?;
            }
            ranges.push(range);
        }
        Ok(ranges)
    }
}

impl Wiring {
    /// Makes all else, and what the device is given of it.
    pub(super) fn new(
        vm: &Arc<dyn Vm>,
        ram: &Ram,
        lines: &Lines,
        device: (&str, EventSink),
        (requires, place): (&Requires, &Place),
        mut ranges: Vec<WiredRange>,
    ) -> Result<(Self, Assigned), BuildError> {
        let (id, events) = device;
        let mut assigned = Assigned::new(ram.dma(), events);
        let (mut interrupts, mut messages) = (Vec::new(), Vec::new());
        for range in &mut ranges {
            range.connected._doorbells = range.connect_bells(&**vm, range.registers.base())?;
            assigned.add_registers(range.registers.clone());
            let bells = range.request.doorbells.iter().zip(&range.bells);
            for (request, bell) in bells.filter(|(request, _)| !request.ignored) {
                assigned.add_doorbell(request.name, Arc::clone(bell));
            }
        }
        for (request, &line) in requires.interrupts.iter().zip(&place.interrupts) {
            let interrupt = match (request.trigger, request.resample) {
                (Trigger::Edge, _) if request.rare => lines.called(vm, line)?,
                (Trigger::Edge, _) => {
                    let event = event(id)?;
                    interrupts.push(vm.irqfd(&event, line, None)?);
                    Interrupt::from(event)
                }
                (Trigger::Level, true) => {
                    let target = Resampled { event: event(id)?, resample: event(id)? };
                    interrupts.push(vm.irqfd(&target.event, line, Some(&target.resample))?);
                    Interrupt::new(Arc::new(target))
                }
                (Trigger::Level, false) => lines.share(vm, line)?,
            };
            assigned.add_interrupt(request.name, interrupt);
        }
        for request in &requires.messages {
            let mut handles = Vec::new();
            for _ in 0..request.count {
                let message = Arc::new(Message::new(vm, event(id)?));
                handles.push(MessageInterrupt::new(Arc::clone(&message)));
                messages.push(message);
            }
            assigned.add_messages(request.name, handles);
        }
        for (request, window) in requires.windows.iter().zip(&place.windows) {
            assigned.add_window(request.name, window.clone());
        }
        Ok((Self { ranges, _interrupts: interrupts, messages }, assigned))
    }

    /// Lets the guest read the pages of registers. The device has filled them: a guest that runs sees nothing else. While
    /// none runs they are mapped before any interrupt and doorbell instead, of all devices: after those the kernel takes
    /// milliseconds to change its memory slots.
    pub(super) fn map_pages(&mut self, vm: &dyn Vm) -> Result<(), VmError> {
        for range in &mut self.ranges {
            range.connected._page = range.map_page(vm, range.registers.base())?;
        }
        Ok(())
    }
}

impl Drop for Wiring {
    fn drop(&mut self) {
        for message in &self.messages {
            message.disconnect();
        }
        // Registers that move are held by what answers them: nothing else would ever let go of the two.
        for range in &self.ranges {
            range.registers.disconnected();
        }
    }
}

impl WiredRange {
    fn map_page(&self, vm: &dyn Vm, base: Option<u64>) -> Result<Option<MemorySlot>, VmError> {
        match (self.registers.page(), base) {
            (Some(page), Some(base)) => vm.map_register_page(GuestAddress(base), page),
            _ => Ok(None),
        }
    }

    fn connect_bells(&self, vm: &dyn Vm, base: Option<u64>) -> Result<Vec<Ioeventfd>, VmError> {
        let Some(base) = base else { return Ok(Vec::new()) };
        let bells = self.request.doorbells.iter().zip(&self.bells);
        bells
            .map(|(request, bell)| vm.ioeventfd(bell, doorbell(self.request.space, base, request)?))
            .collect()
    }

    /// Connects page and doorbells at `base` instead of where they are. On an error they are where they were, as far as
    /// the hypervisor takes them back.
    pub(super) fn reconnect(&mut self, vm: &dyn Vm, base: Option<u64>) -> Result<(), VmError> {
        // The new place may overlap the old one: that is given up first.
        self.connected = Connected::default();
        let connect = |base| {
            Ok(Connected { _page: self.map_page(vm, base)?, _doorbells: self.connect_bells(vm, base)? })
        };
        match connect(base) {
            Ok(connected) => {
                self.connected = connected;
                Ok(())
            }
            Err(error) => {
                if let Ok(connected) = connect(self.registers.base()) {
                    self.connected = connected;
                }
                Err(error)
            }
        }
    }
}

fn event(id: &str) -> Result<Arc<Event>, BuildError> {
    Event::new().map(Arc::new).map_err(|source| host(id, source))
}

fn host(id: &str, source: io::Error) -> BuildError {
    BuildError::Host { id: id.to_owned(), source }
}

fn doorbell(space: AddressSpace, base: u64, request: &DoorbellRequest) -> Result<Doorbell, VmError> {
    let beyond = VmError::Unsupported { what: "a doorbell beyond the last address" };
    let Some(address) = base.checked_add(request.offset) else { return Err(beyond) };
    let address = match space {
        AddressSpace::Mmio => DoorbellAddress::Mmio(address),
        AddressSpace::Pio => DoorbellAddress::Pio(u16::try_from(address).map_err(|_| beyond)?),
    };
    Ok(Doorbell { address, size: request.size, value: request.value })
}
