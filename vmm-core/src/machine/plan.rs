//! Where everything is: devices' requests in, addresses and interrupts out. Pure: nothing is asked of the host.

use std::ops::RangeInclusive;

use ossature_bus::{AddressSpace, Placement, Requires};
use ossature_memory::layout::{self, Conflict, Request, Space};

use super::error::BuildError;

/// Where one device's ranges and interrupts are, in the order in which it asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) ranges: Vec<u64>,
    pub(super) interrupts: Vec<u32>,
}

/// Where devices are put.
const MMIO: RangeInclusive<u64> = 0xd000_0000..=0xdfff_ffff;
/// Where those may be that ask for just that: outside RAM, the I/O APIC, the local APICs, and the pages that KVM
/// keeps for itself.
const MMIO_FIXED: [RangeInclusive<u64>; 3] =
    [0xc000_0000..=0xfebf_ffff, 0xfec0_1000..=0xfedf_ffff, 0xfee0_1000..=0xfffb_bfff];
/// Above the ports of old, below those that PCI firmware hands out.
const PIO: RangeInclusive<u64> = 0xc000..=0xcfff;
const PIO_FIXED: [RangeInclusive<u64>; 1] = [0..=0xffff];
/// Pins of the I/O APIC without a convention: not the timer's (0, 2), the keyboard's (1), the serial ports' (3, 4),
/// the clock's (8) or the FPU's (13).
const GSI: [RangeInclusive<u64>; 3] = [5..=7, 9..=12, 14..=23];
const GSI_FIXED: [RangeInclusive<u64>; 1] = [0..=23];

/// Finds a place for everything, or says everything that is in the way.
pub(super) fn plan(ids: &[&str], requires: &[Requires]) -> Result<Vec<Place>, Vec<BuildError>> {
    let mut errors = contradictions(ids, requires);
    let mut ranges = |kind, space: AddressSpace, places: Space| {
        let requests = requests(ids, requires, |requires| {
            let ranges = requires.ranges.iter().filter(|range| range.space == space);
            ranges.map(|range| (range.size, range.align, range.placement)).collect()
        });
        solve(kind, &places, &requests, &mut errors)
    };
    let mmio_space = Space::new([MMIO]).with_fixed_only(MMIO_FIXED);
    let mut mmio = ranges("memory addresses", AddressSpace::Mmio, mmio_space);
    let mut pio = ranges("ports", AddressSpace::Pio, Space::new([PIO]).with_fixed_only(PIO_FIXED));
    let lines = requests(ids, requires, |requires| {
        requires.interrupts.iter().map(|interrupt| (1, 1, interrupt.placement)).collect()
    });
    let mut lines = solve("interrupts", &Space::new(GSI).with_fixed_only(GSI_FIXED), &lines, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }

    let places = requires.iter().map(|requires| {
        let ranges = requires.ranges.iter().filter_map(|range| match range.space {
            AddressSpace::Mmio => mmio.next(),
            AddressSpace::Pio => pio.next(),
        });
        let ranges = ranges.collect();
        let interrupts = lines.by_ref().take(requires.interrupts.len());
        Place { ranges, interrupts: interrupts.map(|line| line as u32).collect() }
    });
    Ok(places.collect())
}

/// One request to the solver per item, in the order of the devices.
fn requests(
    ids: &[&str],
    requires: &[Requires],
    items: impl Fn(&Requires) -> Vec<(u64, u64, Placement)>,
) -> Vec<Request> {
    let one =
        |owner: &str, (size, align, placement)| Request { owner: owner.to_owned(), size, align, placement };
    let of = |(id, requires): (&&str, _)| {
        items(requires).into_iter().map(|item| one(id, item)).collect::<Vec<_>>()
    };
    ids.iter().zip(requires).flat_map(of).collect()
}

fn solve(
    kind: &'static str,
    space: &Space,
    requests: &[Request],
    errors: &mut Vec<BuildError>,
) -> std::vec::IntoIter<u64> {
    let places = layout::solve(space, requests).unwrap_or_else(|conflicts: Vec<Conflict>| {
        errors.extend(conflicts.into_iter().map(|conflict| BuildError::Layout { kind, conflict }));
        Vec::new()
    });
    places.into_iter()
}

/// Requests that do not fit each other.
fn contradictions(ids: &[&str], requires: &[Requires]) -> Vec<BuildError> {
    let mut errors = Vec::new();
    for (id, requires) in ids.iter().zip(requires) {
        let mut bad = |what: String| errors.push(BuildError::BadRequest { id: (*id).to_owned(), what });
        for doorbell in &requires.doorbells {
            let inside = requires.ranges.get(doorbell.range).is_some_and(|range| {
                doorbell.offset.checked_add(doorbell.size.bytes()).is_some_and(|end| end <= range.size)
            });
            if !inside {
                bad(format!(
                    "a doorbell at {:#x} of its range {}, which has no such place",
                    doorbell.offset, doorbell.range
                ));
            }
        }
        for &page in &requires.pages {
            let whole = requires.ranges.get(page).is_some_and(|range| {
                range.space == AddressSpace::Mmio && range.size == PAGE && range.align % PAGE == 0
            });
            if !whole {
                bad(format!("a register page for its range {page}, which is not one page of memory"));
            }
        }
    }
    errors
}

const PAGE: u64 = ossature_memory::PAGE_SIZE as u64;

#[cfg(test)]
mod tests;
