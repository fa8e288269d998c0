//! The root bus: who is in which slot, and what guest and host tell each other about it.

use std::fmt;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{Effect, Interrupt, ParentBus, Size};

use crate::port::FunctionPort;
use crate::{PciError, PciHost};

/// Slots of a bus; slot 0 is the host bridge's.
pub(crate) const SLOTS: u8 = 32;

/// A root bus of 32 slots with one function each. Clones are the same bus.
///
/// [`host`](Self::host) makes the device that connects it to a machine; each [`Function`](crate::Function) joins it when
/// its device is attached to the same machine. Another machine refuses the device, and so does one without the host.
#[derive(Clone)]
pub struct PciBus(Arc<Shared>);

struct Shared {
    /// Held for no longer than an edit; functions are called without it.
    state: Mutex<State>,
    /// Where functions can be: taken after the state's lock and after a function's.
    windows: Arc<Windows>,
    /// What a machine knows it by.
    name: ParentBus,
}

/// What a machine says that has one of its functions and not its host bridge.
const NO_HOST: &str = "a PCI bus whose host bridge is not in this machine: add the device of PciBus::host";

/// The addresses that a bus can hand on to its functions.
#[derive(Debug, Default)]
pub(crate) struct Windows(Mutex<Vec<RangeInclusive<u64>>>);

impl Windows {
    fn lock(&self) -> MutexGuard<'_, Vec<RangeInclusive<u64>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns true if `size` bytes at `base` are in one of them.
    pub(crate) fn contain(&self, base: u64, size: u64) -> bool {
        let Some(last) = base.checked_add(size.saturating_sub(1)) else { return false };
        self.lock().iter().any(|window| window.contains(&base) && window.contains(&last))
    }
}

struct State {
    slots: [Slot; SLOTS as usize],
    interrupt: Option<Interrupt>,
    /// The bus belongs to a machine.
    attached: bool,
    /// A guest may have looked at the bus.
    started: bool,
    hotplug: Hotplug,
}

/// What guest and host have to tell each other, a bit for each slot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Hotplug {
    /// Slots that a function has come to.
    pub(crate) up: u32,
    /// Slots that the guest is to give up.
    pub(crate) down: u32,
    /// Slots whose function has gone, and which the guest has not ejected yet.
    pub(crate) gone: u32,
}

impl Hotplug {
    fn forget(&mut self, bits: u32) {
        let Self { up, down, gone } = self;
        for field in [up, down, gone] {
            *field &= !bits;
        }
    }
}

#[derive(Default)]
struct Slot {
    /// The device that has it.
    id: String,
    /// Attached devices of this id: two while one takes the other's place.
    holders: u32,
    /// What the guest sees.
    visible: Option<Arc<FunctionPort>>,
}

fn bit(slot: u8) -> u32 {
    1u32.checked_shl(slot.into()).unwrap_or(0)
}

impl Default for PciBus {
    fn default() -> Self {
        Self::new()
    }
}

impl PciBus {
    /// A bus with nothing but a host bridge.
    pub fn new() -> Self {
        let mut slots: [Slot; SLOTS as usize] = Default::default();
        if let Some(bridge) = slots.first_mut() {
            bridge.visible = Some(Arc::new(FunctionPort::host_bridge()));
        }
        let (interrupt, attached, started, hotplug) = Default::default();
        let state = Mutex::new(State { slots, interrupt, attached, started, hotplug });
        Self(Arc::new(Shared { state, windows: Arc::default(), name: ParentBus::new(NO_HOST) }))
    }

    /// The device, named `id` in its machine, by which the guest reaches the bus. One at a time.
    pub fn host(&self, id: impl Into<String>) -> PciHost {
        PciHost::new(id.into(), self.clone())
    }

    /// Asks the guest to give up the function of the device `id`. When it has ejected it, the machine removes the device.
    /// A guest may take its time, and may refuse.
    pub fn request_removal(&self, id: &str) -> Result<(), PciError> {
        let mut state = self.lock();
        let slot = state.find(id).ok_or_else(|| PciError::NoSuchFunction { id: id.to_owned() })?;
        if !state.started {
            return Err(PciError::NotStarted);
        }
        state.hotplug.down |= bit(slot);
        state.signal();
        Ok(())
    }

    /// The slot of the device `id`, while a guest sees its function.
    pub fn slot_of(&self, id: &str) -> Option<u8> {
        self.lock().find(id)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn name(&self) -> &ParentBus {
        &self.0.name
    }

    pub(crate) fn windows(&self) -> Arc<Windows> {
        Arc::clone(&self.0.windows)
    }

    /// The function that a guest sees in a slot.
    fn function(&self, slot: u8) -> Option<Arc<FunctionPort>> {
        self.lock().slots.get(usize::from(slot)).and_then(|slot| slot.visible.clone())
    }

    /// Reads configuration space: function `function` of a slot, an aligned register. All ones where nothing is.
    pub(crate) fn read(&self, slot: u8, function: u8, offset: u16, size: Size) -> u64 {
        let found = if function == 0 { self.function(slot) } else { None };
        found.map_or(size.mask(), |function| function.read(offset, size))
    }

    /// Writes configuration space.
    pub(crate) fn write(&self, slot: u8, function: u8, offset: u16, size: Size, value: u64) -> Effect {
        let found = if function == 0 { self.function(slot) } else { None };
        found.map_or(Effect::None, |function| function.write(offset, size, value))
    }

    /// Connects the bus to a machine.
    pub(crate) fn attach(
        &self,
        windows: Vec<RangeInclusive<u64>>,
        interrupt: Interrupt,
    ) -> Result<(), PciError> {
        let mut state = self.lock();
        if std::mem::replace(&mut state.attached, true) {
            return Err(PciError::Attached);
        }
        state.interrupt = Some(interrupt);
        *self.0.windows.lock() = windows;
        Ok(())
    }

    /// Disconnects the bus from its machine.
    pub(crate) fn detach(&self) {
        let mut state = self.lock();
        (state.interrupt, state.attached, state.started) = (None, false, false);
        state.hotplug = Hotplug::default();
        self.0.windows.lock().clear();
    }

    /// The machine goes on: from now on a guest is told of what comes and goes.
    pub(crate) fn start(&self) {
        self.lock().started = true;
    }

    /// Forgets what guest and host have not told each other yet.
    pub(crate) fn reset(&self) {
        self.lock().hotplug = Hotplug::default();
    }

    pub(crate) fn hotplug(&self) -> Hotplug {
        self.lock().hotplug
    }

    /// Returns false, and changes nothing, if it is about slots that are not as it says.
    pub(crate) fn restore_hotplug(&self, hotplug: Hotplug) -> bool {
        let mut state = self.lock();
        let taken = state.slots.iter().zip(0..).filter(|(slot, _)| slot.holders > 0);
        let taken = taken.fold(0, |bits, (_, slot)| bits | bit(slot));
        let Hotplug { up, down, gone } = hotplug;
        let fits = up & !taken == 0 && down & !(taken | gone) == 0 && gone & (taken | bit(0)) == 0;
        if fits {
            state.hotplug = hotplug;
        }
        fits
    }

    /// Interrupts the guest if there is something to tell.
    pub(crate) fn signal_again(&self) {
        let state = self.lock();
        if state.hotplug.up | state.hotplug.down != 0 {
            state.signal();
        }
    }

    /// Takes the slots that functions have come to.
    pub(crate) fn take_up(&self) -> u32 {
        std::mem::take(&mut self.lock().hotplug.up)
    }

    /// Takes the slots that the guest is to give up.
    pub(crate) fn take_down(&self) -> u32 {
        std::mem::take(&mut self.lock().hotplug.down)
    }

    /// The slots in which a guest sees functions.
    pub(crate) fn present(&self) -> u32 {
        let state = self.lock();
        let visible = state.slots.iter().zip(0..).skip(1).filter(|(slot, _)| slot.visible.is_some());
        visible.fold(0, |bits, (_, slot)| bits | bit(slot))
    }

    /// The guest ejects a slot. One at a time: each ejection is one device that the machine removes.
    pub(crate) fn eject(&self, slots: u32) -> Effect {
        if !slots.is_power_of_two() {
            return Effect::None;
        }
        let mut state = self.lock();
        let slot = slots.trailing_zeros() as u8;
        state.hotplug.forget(slots);
        let function = match state.slots.get_mut(usize::from(slot)) {
            Some(place) if slot > 0 => place.visible.take(),
            _ => None,
        };
        drop(state);
        function.map_or(Effect::None, |function| function.eject())
    }

    /// Takes a slot for the device `id`: this one, or the lowest that is free. Returns the slot, and true if a guest that
    /// may have looked at the bus already is to be told when the function can be seen.
    pub(crate) fn reserve(&self, id: &str, slot: Option<u8>) -> Result<(u8, bool), PciError> {
        let mut state = self.lock();
        let gone = state.hotplug.gone;
        let own = state
            .slots
            .iter()
            .zip(0..)
            .find(|(slot, _)| slot.holders > 0 && slot.id == id)
            .map(|(_, slot)| slot);
        let slot = match (slot, own) {
            (None, Some(own)) => own,
            (Some(slot), _) => slot,
            (None, None) => {
                let free = |&slot: &u8| {
                    let place = state.slots.get(usize::from(slot));
                    gone & bit(slot) == 0 && place.is_some_and(|place| place.holders == 0)
                };
                (1..SLOTS).find(free).ok_or(PciError::Full)?
            }
        };
        let hot = state.started && own.is_none();
        let place = state.slots.get_mut(usize::from(slot)).filter(|_| slot > 0);
        let place = place.ok_or(PciError::NoSuchSlot { slot })?;
        if place.holders > 0 && own != Some(slot) {
            return Err(PciError::Taken { slot, id: place.id.clone() });
        }
        if own.is_some_and(|own| own != slot) {
            return Err(PciError::Taken { slot, id: id.to_owned() });
        }
        if gone & bit(slot) != 0 {
            return Err(PciError::NotEjected { slot });
        }
        place.holders += 1;
        id.clone_into(&mut place.id);
        Ok((slot, hot))
    }

    /// Shows a function to the guest, and tells it of one that has come.
    pub(crate) fn show(&self, slot: u8, function: &Arc<FunctionPort>, tell: bool) {
        let mut state = self.lock();
        let Some(place) = state.slots.get_mut(usize::from(slot)) else { return };
        place.visible = Some(Arc::clone(function));
        if tell {
            state.hotplug.up |= bit(slot);
            state.signal();
        }
    }

    /// No guest sees this function any more, which has been ejected.
    pub(crate) fn hide(&self, slot: u8, function: &Arc<FunctionPort>) {
        let mut state = self.lock();
        let Some(place) = state.slots.get_mut(usize::from(slot)) else { return };
        place.visible = place.visible.take().filter(|visible| !Arc::ptr_eq(visible, function));
    }

    /// A device gives up its slot. The guest is told if it has not done so itself.
    pub(crate) fn leave(&self, slot: u8, function: &Arc<FunctionPort>) {
        let mut state = self.lock();
        let started = state.started;
        let Some(place) = state.slots.get_mut(usize::from(slot)) else { return };
        place.holders = place.holders.saturating_sub(1);
        let seen = place.visible.as_ref().is_some_and(|visible| Arc::ptr_eq(visible, function));
        if seen {
            place.visible = None;
        }
        if place.holders > 0 {
            return;
        }
        place.id.clear();
        state.hotplug.forget(bit(slot));
        if seen && started {
            state.hotplug.down |= bit(slot);
            state.hotplug.gone |= bit(slot);
            state.signal();
        }
    }

    /// Gives back a slot that no guest has seen anything in.
    pub(crate) fn release(&self, slot: u8) {
        if let Some(place) = self.lock().slots.get_mut(usize::from(slot)) {
            place.holders = place.holders.saturating_sub(1);
        }
    }
}

impl State {
    fn find(&self, id: &str) -> Option<u8> {
        let mut slots = self.slots.iter().zip(0..).skip(1);
        slots.find(|(slot, _)| slot.visible.is_some() && slot.id == id).map(|(_, slot)| slot)
    }

    fn signal(&self) {
        if let Some(interrupt) = &self.interrupt {
            // Nobody is left to tell of a line that is gone.
            let _ = interrupt.signal();
        }
    }
}

impl fmt::Debug for PciBus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciBus").field("present", &self.present()).finish_non_exhaustive()
    }
}
