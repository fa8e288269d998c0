//! A device takes the place of another one, and the guest notices nothing.

use std::sync::Arc;

use ossature_bus::{AddressSpace, Device, DeviceError, DeviceState, Handover, Mmio, NodeKind, Retired};

use super::{Board, Slot, caught, failed, lock, position};
use crate::machine::error::LifecycleError;

/// What answers a slot's registers.
type Ports = Vec<Option<Arc<dyn Mmio>>>;

/// A device that another one has taken the place of.
struct Swapped {
    device: Box<dyn Device>,
    ports: Ports,
    retired: Vec<Retired>,
}

impl Board {
    /// Puts `new` in the place of the device of the same id, with its state and everything that it was assigned, and
    /// returns the old one, detached. The vCPUs are paused; `sync` makes each of them take notice of the buses. Whichever
    /// device has the place in the end goes on, if the machine `runs`; on an error that is the old one.
    pub(in crate::machine) fn replace(
        &self,
        new: Box<dyn Device>,
        runs: bool,
        sync: impl FnOnce() -> Result<(), LifecycleError>,
    ) -> Result<Box<dyn Device>, LifecycleError> {
        let mut slots = lock(&self.slots);
        let id = new.id().to_owned();
        let at = position(&slots, &id)?;
        let Some(slot) = slots.get_mut(at) else { return Err(LifecycleError::NoSuchDevice { id }) };
        if slot.kind == NodeKind::PciHost {
            let reason = "the functions on its bus know their bus; replace them one by one";
            return Err(LifecycleError::NotReplaceable { id, reason });
        }
        if new.requires() != slot.requires {
            return Err(LifecycleError::DifferentDevice { id });
        }
        let quiet = self.step(&mut *slot.device, |device| device.quiesce());
        let swapped = quiet.map_err(|source| failed(&id, source)).and_then(|()| self.swap(slot, new));
        let Swapped { mut device, ports, mut retired } = swapped.inspect_err(|_| {
            // The error that brought us here is the one to tell, here and below.
            let _ = self.go_on(slot, runs);
        })?;
        let resumed = if runs { caught(|| slot.device.resume()) } else { Ok(()) };
        if resumed.is_err() {
            let _ = caught(|| slot.device.quiesce());
            answer(slot, ports);
            retired.extend(self.answer_anew(slot).into_iter().flatten());
            std::mem::swap(&mut slot.device, &mut device);
        }
        sync()?;
        retired.iter().for_each(Retired::wait);
        let detached = caught(|| device.detach());
        if resumed.is_err() {
            let _ = self.go_on(slot, runs);
        }
        resumed.and(detached).map_err(|source| failed(&id, source))?;
        Ok(device)
    }

    fn go_on(&self, slot: &mut Slot, runs: bool) -> Result<(), DeviceError> {
        if runs { self.step(&mut *slot.device, |device| device.resume()) } else { Ok(()) }
    }

    /// Swaps the device in `slot`, which is quiet, for `new`. On an error the old one is still there.
    fn swap(&self, slot: &mut Slot, mut new: Box<dyn Device>) -> Result<Swapped, LifecycleError> {
        let id = slot.device.id().to_owned();
        let saved = self.step(&mut *slot.device, |device| device.save());
        let state = match saved.map_err(|source| failed(&id, source))? {
            DeviceState::Unsupported { reason } => return Err(LifecycleError::Unsupported { id, reason }),
            DeviceState::Saved(handover) => Some(handover),
            _ => None,
        };
        let ports: Ports = slot.assigned.all_registers().iter().map(|registers| registers.port()).collect();
        let swapped = take_over(&mut *new, slot, state).and_then(|()| {
            self.answer_anew(slot).inspect_err(|_| {
                // The error that brought us here is the one to tell.
                let _ = caught(|| new.detach());
            })
        });
        match swapped {
            Ok(retired) => Ok(Swapped { device: std::mem::replace(&mut slot.device, new), ports, retired }),
            Err(error) => {
                answer(slot, ports);
                Err(error)
            }
        }
    }

    /// Has the buses dispatch to whatever answers the slot's registers now. The ranges stay, so that only a mistake of
    /// ours can be in the way.
    fn answer_anew(&self, slot: &Slot) -> Result<Vec<Retired>, LifecycleError> {
        let mut retired = Vec::new();
        for space in [AddressSpace::Mmio, AddressSpace::Pio] {
            let requests = slot.requires.registers.iter().zip(slot.assigned.all_registers());
            let answers = requests.filter(|(request, _)| request.space == space);
            let answers = answers.filter_map(|(_, registers)| Some((registers.base()?, registers.port()?)));
            retired.extend(self.bus(space).replace_all(answers).map_err(LifecycleError::Bus)?);
        }
        Ok(retired)
    }
}

/// Has `ports` answer the slot's registers again.
fn answer(slot: &Slot, ports: Ports) {
    for (registers, port) in slot.assigned.all_registers().iter().zip(ports) {
        port.into_iter().for_each(|port| registers.answer(port));
    }
}

/// Attaches `new` to what the device in `slot` was assigned, with its state.
fn take_over(
    new: &mut dyn Device,
    slot: &Slot,
    state: Option<Handover<'static>>,
) -> Result<(), LifecycleError> {
    let id = || slot.device.id().to_owned();
    let kind = caught(|| new.attach(slot.assigned.clone())).map_err(|source| failed(&id(), source))?;
    let taken = if kind != slot.kind {
        Err(LifecycleError::DifferentDevice { id: id() })
    } else {
        state.map_or(Ok(()), |state| {
            let restored = caught(|| Ok(new.restore(state)));
            let restored = restored.map_err(|source| failed(slot.device.id(), source))?;
            restored.map_err(|source| LifecycleError::State { id: id(), source })
        })
    };
    taken.inspect_err(|_| {
        // The error that brought us here is the one to tell.
        let _ = caught(|| new.detach());
    })
}
