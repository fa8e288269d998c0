//! The shape of a machine: what has to be the same where a snapshot is restored. Its section is `machine`.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use ossature_boot::{Numa, NumaNode};
use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};
use ossature_bus::state_file::MAX_SECTIONS;
use ossature_bus::{Placement, Requires, WindowRequest};

use crate::machine::plan::Place;

/// The section's id.
pub(super) const ID: &str = "machine";

const KIND: &str = "org.ossature.machine";
const VERSION: u16 = 1;
const CPUS: Field = Field::new(1, "vCPUs");
const DEVICES: Field = Field::new(2, "devices");
/// Left out where there are none.
const NUMA: Field = Field::new(3, "NUMA nodes");

const NODES: Field = Field::new(1, "NUMA nodes");
const DISTANCES: Field = Field::new(2, "distances of NUMA nodes");
const NODE_CPUS: Field = Field::new(1, "vCPUs of a NUMA node");
const NODE_MEMORY: Field = Field::new(2, "bytes of a NUMA node");
const FROM: Field = Field::new(1, "node that a distance is from");
const TO: Field = Field::new(2, "node that a distance is to");
const DISTANCE: Field = Field::new(3, "distance of two NUMA nodes");

const DEVICE: Field = Field::new(1, "id of a device");
const REGISTERS: Field = Field::new(2, "registers of a device");
const INTERRUPTS: Field = Field::new(3, "interrupts of a device");
const WINDOWS: Field = Field::new(4, "windows of a device");
const BASE: Field = Field::new(1, "base");
const LINE: Field = Field::new(1, "line");
const FIRST: Field = Field::new(1, "first address");
const LAST: Field = Field::new(2, "last address");

const MAX_ID: usize = 255;
/// More than any device asks for.
const MAX_RANGES: usize = 1024;

/// What has to be the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::machine) struct Shape {
    pub(in crate::machine) cpus: u32,
    pub(in crate::machine) numa: Option<Numa>,
    /// Each device by its id, and where it was put: guests know these addresses.
    pub(in crate::machine) devices: Vec<(String, Place)>,
}

impl Shape {
    pub(in crate::machine) fn new(cpus: u32, numa: Option<Numa>, mut devices: Vec<(String, Place)>) -> Self {
        devices.sort_by(|(one, _), (other, _)| one.cmp(other));
        Self { cpus, numa, devices }
    }

    pub(super) fn save(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(CPUS, self.cpus).list(DEVICES, &self.devices, |fields, (id, place)| {
            fields.bytes(DEVICE, id.as_bytes());
            fields.list(REGISTERS, &place.registers, |fields, base| {
                if let Some(base) = base {
                    fields.u64(BASE, *base);
                }
            });
            fields.list(INTERRUPTS, &place.interrupts, |fields, line| _ = fields.u32(LINE, *line));
            fields.list(WINDOWS, &place.windows, |fields, window| {
                fields.u64(FIRST, *window.start()).u64(LAST, *window.end());
            });
        });
        if let Some(numa) = &self.numa {
            fields.nested(NUMA, |fields| save_numa(fields, numa));
        }
        fields.finish()
    }

    pub(super) fn load(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let cpus = fields.u32(CPUS)?;
        if cpus == 0 || cpus as usize > MAX_SECTIONS {
            return Err(StateError::Value { field: "vCPUs", value: cpus.into() });
        }
        let devices = fields.list(DEVICES, MAX_SECTIONS, |fields| {
            let id = std::str::from_utf8(fields.bytes(DEVICE, MAX_ID)?);
            let not_text = |_| StateError::Inconsistent { field: "id of a device", reason: "it is not text" };
            let id = id.map_err(not_text)?.to_owned();
            let registers =
                fields.list(REGISTERS, MAX_RANGES, |fields| fields.optional(BASE, Decoder::u64))?;
            let interrupts = fields.list(INTERRUPTS, MAX_RANGES, |fields| fields.u32(LINE))?;
            let windows = fields.list(WINDOWS, MAX_RANGES, window)?;
            Ok((id, Place { registers, interrupts, windows }))
        })?;
        let numa = fields.optional(NUMA, |fields, field| fields.nested(field, load_numa))?;
        let is_wrong = |numa: &Numa| numa.memory() == 0 || numa.check(cpus, numa.memory()).is_err();
        if numa.as_ref().is_some_and(is_wrong) {
            let reason = "they are not those of a machine with so many vCPUs and memory";
            return Err(StateError::Inconsistent { field: "NUMA nodes", reason });
        }
        fields.finish()?;
        let shape = Self::new(cpus, numa, devices);
        if shape.devices.windows(2).any(|pair| matches!(pair, [(one, _), (other, _)] if one == other)) {
            let reason = "two have the same";
            return Err(StateError::Inconsistent { field: "id of a device", reason });
        }
        Ok(shape)
    }

    /// The devices that it has and those of the machine have not, and the other way round.
    pub(in crate::machine) fn difference(&self, ids: &BTreeSet<&str>) -> (Vec<String>, Vec<String>) {
        let own: BTreeSet<&str> = self.devices.iter().map(|(id, _)| id.as_str()).collect();
        let only = |one: &BTreeSet<&str>, other: &BTreeSet<&str>| -> Vec<String> {
            one.difference(other).map(|id| (*id).to_owned()).collect()
        };
        (only(&own, ids), only(ids, &own))
    }

    fn get(&self, id: &str) -> Option<&Place> {
        self.devices.iter().find(|(other, _)| other == id).map(|(_, place)| place)
    }

    /// Returns true if this is where the device `id` was.
    pub(in crate::machine) fn is_at(&self, id: &str, place: &Place) -> bool {
        self.get(id) == Some(place)
    }

    /// The windows of the device `id`.
    pub(in crate::machine) fn windows(&self, id: &str) -> Option<&[RangeInclusive<u64>]> {
        self.get(id).map(|place| place.windows.as_slice())
    }

    /// The windows of all devices.
    pub(super) fn all_windows(&self) -> impl Iterator<Item = &RangeInclusive<u64>> {
        self.devices.iter().flat_map(|(_, place)| &place.windows)
    }

    /// What the device `id` asks for, at the places where it was. `None` if it asks for other things than it did.
    pub(in crate::machine) fn pinned(&self, id: &str, requires: &Requires) -> Option<Requires> {
        let Place { registers, interrupts, windows } = self.get(id)?;
        let asked = (requires.registers.len(), requires.interrupts.len(), requires.windows.len());
        if asked != (registers.len(), interrupts.len(), windows.len()) {
            return None;
        }
        if !requires.windows.iter().zip(windows).all(|(request, window)| answers(request, window)) {
            return None;
        }
        let mut pinned = requires.clone();
        for (request, base) in pinned.registers.iter_mut().zip(registers) {
            match base {
                Some(base) if !request.unplaced => pin(&mut request.placement, *base)?,
                None if request.unplaced => {}
                _ => return None,
            }
        }
        for (request, line) in pinned.interrupts.iter_mut().zip(interrupts) {
            pin(&mut request.placement, (*line).into())?;
        }
        Some(pinned)
    }
}

fn save_numa(fields: &mut Encoder, numa: &Numa) {
    fields.list(NODES, numa.nodes(), |fields, node| {
        fields.u32(NODE_CPUS, node.cpus).u64(NODE_MEMORY, node.memory);
    });
    fields.list(DISTANCES, numa.unusual_distances(), |fields, ((from, to), distance)| {
        fields.u32(FROM, from).u32(TO, to).u8(DISTANCE, distance);
    });
}

fn load_numa(fields: &mut Decoder<'_>) -> Result<Numa, StateError> {
    const MAX: usize = Numa::MAX_NODES;
    let node = |fields: &mut Decoder<'_>| Ok(NumaNode::new(fields.u32(NODE_CPUS)?, fields.u64(NODE_MEMORY)?));
    let nodes = fields.list(NODES, MAX, node)?;
    let distance = |fields: &mut Decoder<'_>| Ok((fields.u32(FROM)?, fields.u32(TO)?, fields.u8(DISTANCE)?));
    let distances = fields.list(DISTANCES, MAX * MAX, distance)?;
    let add = |numa: Numa, (from, to, distance)| numa.with_distance(from, to, distance);
    Ok(distances.into_iter().fold(Numa::new(nodes), add))
}

/// Returns true if a request for a window can have been answered by this one.
fn answers(request: &WindowRequest, window: &RangeInclusive<u64>) -> bool {
    let span = window.end() - window.start();
    let mut size = request.size;
    while size > request.least && size - 1 > span {
        size = (size / 2).max(request.least);
    }
    size.checked_sub(1) == Some(span) && (window.start() >> 32 > 0) == request.high
}

/// Asks for `place` instead. `None` if only another one will do.
fn pin(placement: &mut Placement, place: u64) -> Option<()> {
    let wanted = std::mem::replace(placement, Placement::Fixed(place));
    (wanted == Placement::Any || wanted == *placement).then_some(())
}

fn window(fields: &mut Decoder<'_>) -> Result<RangeInclusive<u64>, StateError> {
    let window = fields.u64(FIRST)?..=fields.u64(LAST)?;
    if window.is_empty() {
        let reason = "it ends before it begins";
        return Err(StateError::Inconsistent { field: "windows of a device", reason });
    }
    Ok(window)
}

#[cfg(test)]
mod tests;
