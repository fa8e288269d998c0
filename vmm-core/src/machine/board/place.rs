//! Where a machine's devices are put: anew, beside others, or where they were in the machine of a snapshot.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use ossature_bus::state_file::is_reserved_id;
use ossature_bus::{Device, Requires};

use super::Slot;
use crate::machine::error::BuildError;
use crate::machine::plan::{self, Above, Asked, Place};
use crate::machine::snapshot::{Shape, SnapshotError};

/// A device that has a place and nothing else yet.
pub(in crate::machine) struct Placed {
    pub(super) device: Box<dyn Device>,
    pub(super) requires: Requires,
    pub(super) place: Place,
}

impl Placed {
    fn fitting(&self, requires: Requires) -> Fitting {
        Fitting { id: self.device.id().to_owned(), requires, place: self.place.clone() }
    }
}

/// Finds places for the devices of a machine that has none yet, or says everything that is in the way.
pub(in crate::machine) fn place(
    devices: Vec<Box<dyn Device>>,
    above: Above,
) -> Result<Vec<Placed>, Vec<BuildError>> {
    place_beside(&[], devices, above)
}

/// What a device asked for that fits where it was, and where that is.
#[derive(Debug)]
pub(in crate::machine) struct Fitting {
    id: String,
    requires: Requires,
    place: Place,
}

/// The same at the places where they were in the machine of a snapshot. Devices that ask for what others did, which were
/// found to be `fitting`, fit, too.
pub(in crate::machine) fn place_again(
    devices: Vec<Box<dyn Device>>,
    (shape, fitting): (&Shape, &OnceLock<Vec<Fitting>>),
    above: Above,
) -> Result<Vec<Placed>, Vec<BuildError>> {
    let requires: Vec<Requires> = devices.iter().map(|device| device.requires()).collect();
    let asked = devices.iter().zip(&requires).map(|(device, requires)| (device.id(), requires));
    if let Some(known) = fitting.get() {
        let fits = |known: &Fitting, (id, requires): (&str, &Requires)| {
            known.id == id && known.requires.fits_like(requires)
        };
        if known.len() == devices.len() && known.iter().zip(asked).all(|(known, asked)| fits(known, asked)) {
            let buses = devices.iter().zip(&requires).map(|(device, requires)| (device.id(), requires));
            let errors = check_buses(buses, 0);
            if !errors.is_empty() {
                return Err(errors);
            }
            let parts = devices.into_iter().zip(requires).zip(known);
            let placed = parts.map(|((device, requires), known)| Placed {
                device,
                requires,
                place: known.place.clone(),
            });
            return Ok(placed.collect());
        }
    }
    let placed = find_again(devices, &requires, shape, above)?;
    fitting.get_or_init(|| {
        let parts = placed.iter().zip(requires);
        parts.map(|(placed, requires)| placed.fitting(requires)).collect()
    });
    Ok(placed)
}

fn find_again(
    devices: Vec<Box<dyn Device>>,
    requires: &[Requires],
    shape: &Shape,
    above: Above,
) -> Result<Vec<Placed>, Vec<BuildError>> {
    let ids: BTreeSet<&str> = devices.iter().map(|device| device.id()).collect();
    let (missing, extra) = shape.difference(&ids);
    if !(missing.is_empty() && extra.is_empty()) {
        return Err(vec![SnapshotError::OtherDevices { missing, extra }.into()]);
    }
    let mut pinned = Vec::new();
    let mut errors = Vec::new();
    for (device, requires) in devices.iter().zip(requires) {
        match shape.pinned(device.id(), requires) {
            Some(requires) => pinned.push(requires),
            None => errors.push(SnapshotError::OtherDevice { id: device.id().to_owned() }.into()),
        }
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    let mut placed = place_requires(&[], devices, (pinned, Some(shape)), above)?;
    if let Some(moved) = placed.iter().find(|placed| !shape.is_at(placed.device.id(), &placed.place)) {
        return Err(vec![SnapshotError::OtherDevice { id: moved.device.id().to_owned() }.into()]);
    }
    // What may take their place asks for the same as they do.
    placed.iter_mut().zip(requires).for_each(|(placed, requires)| placed.requires = requires.clone());
    Ok(placed)
}

/// Finds places for `devices` beside those in `slots`.
pub(super) fn place_beside(
    slots: &[Slot],
    devices: Vec<Box<dyn Device>>,
    above: Above,
) -> Result<Vec<Placed>, Vec<BuildError>> {
    let requires = devices.iter().map(|device| device.requires()).collect();
    place_requires(slots, devices, (requires, None), above)
}

/// The same for devices that ask for `requires`, and keep the windows of `shape`.
fn place_requires(
    slots: &[Slot],
    devices: Vec<Box<dyn Device>>,
    (requires, shape): (Vec<Requires>, Option<&Shape>),
    above: Above,
) -> Result<Vec<Placed>, Vec<BuildError>> {
    let now: Vec<Place> = slots.iter().map(Slot::place_now).collect();
    let placed = slots.iter().zip(&now).map(|(slot, place)| Asked {
        id: slot.device.id(),
        requires: &slot.requires,
        place: Some(place),
        windows: Some(&place.windows),
    });
    let new = devices.iter().zip(&requires);
    let new = new.map(|(device, requires)| {
        let windows = shape.and_then(|shape| shape.windows(device.id()));
        Asked { id: device.id(), requires, place: None, windows }
    });
    let asked: Vec<Asked<'_>> = placed.chain(new).collect();
    let mut errors = check_ids(&asked, slots.len());
    errors.extend(check_buses(asked.iter().map(|asked| (asked.id, asked.requires)), slots.len()));
    let mut places = plan::plan(&asked, above).unwrap_or_else(|conflicts| {
        errors.extend(conflicts);
        Vec::new()
    });
    if !errors.is_empty() {
        return Err(errors);
    }
    let places = places.split_off(slots.len());
    let parts = devices.into_iter().zip(requires).zip(places);
    Ok(parts.map(|((device, requires), place)| Placed { device, requires, place }).collect())
}

/// The devices on buses that none of them brings. The first `placed` have been checked before.
fn check_buses<'a>(
    devices: impl Iterator<Item = (&'a str, &'a Requires)> + Clone,
    placed: usize,
) -> Vec<BuildError> {
    let absent = |(id, requires): (&str, &Requires)| {
        let bus = requires.on.as_ref()?;
        let here = devices.clone().any(|(_, other)| other.brings.as_ref() == Some(bus));
        (!here).then(|| BuildError::NoBus { id: id.to_owned(), absent: bus.absent() })
    };
    devices.clone().skip(placed).filter_map(absent).collect()
}

/// What is wrong with the names of devices, of which the first `placed` have been checked before.
fn check_ids(asked: &[Asked<'_>], placed: usize) -> Vec<BuildError> {
    let mut errors = Vec::new();
    let mut seen = BTreeSet::new();
    for (index, Asked { id, .. }) in asked.iter().enumerate() {
        let known = !seen.insert(*id);
        if index < placed {
            continue;
        }
        let id = (*id).to_owned();
        if id.is_empty() {
            errors.push(BuildError::EmptyId { index: index - placed });
        } else if is_reserved_id(&id) {
            errors.push(BuildError::ReservedId { id });
        } else if known {
            errors.push(BuildError::DuplicateId { id });
        }
    }
    errors
}
