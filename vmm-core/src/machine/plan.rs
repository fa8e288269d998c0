//! Where everything is: devices' requests in, addresses and interrupts out. Pure: nothing is asked of the host.

use std::ops::RangeInclusive;

use ossature_bus::{AddressSpace, Placement, Requires, Trigger};
use ossature_memory::host_page_size;
use ossature_memory::layout::{self, Conflict, Request, Space};

use super::error::{BuildError, INTERRUPTS};
use crate::arch;

/// Above the ports of old, below those that PCI firmware hands out.
const PORTS: RangeInclusive<u64> = 0xc000..=0xcfff;
const ALL_PORTS: RangeInclusive<u64> = 0..=0xffff;

/// Where one device's registers and interrupts are, in the order in which it asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Place {
    /// Where the registers begin; `None` while they are in no address space.
    pub(super) registers: Vec<Option<u64>>,
    pub(super) interrupts: Vec<u32>,
    pub(super) windows: Vec<RangeInclusive<u64>>,
}

/// A device that is to get a place, or has one that it keeps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'a> {
    pub(super) id: &'a str,
    pub(super) requires: &'a Requires,
    pub(super) place: Option<&'a Place>,
    /// The windows that it keeps, if it has had any.
    pub(super) windows: Option<&'a [RangeInclusive<u64>]>,
}

/// What is there for devices above 4 GiB.
#[derive(Clone, Copy, Debug)]
pub(super) struct Above {
    /// RAM ends before.
    pub(super) ram_end: u64,
    /// Bits of addresses that guests have.
    pub(super) address_bits: u32,
}

/// Finds a place for everything beside RAM, or says everything that is in the way.
pub(super) fn plan(asked: &[Asked<'_>], above: Above) -> Result<Vec<Place>, Vec<BuildError>> {
    let mut errors: Vec<_> =
        asked.iter().flat_map(|asked| contradictions(asked.id, asked.requires)).collect();
    let low = windows(asked, false, arch::window_space(), &mut errors);
    let high = windows(asked, true, arch::high_window_space(above.ram_end, above.address_bits), &mut errors);
    let space = arch::memory_space();
    let memory = registers(asked, AddressSpace::Mmio, "memory addresses", space, &low, &mut errors);
    let ports = registers(asked, AddressSpace::Pio, "ports", port_space(), &[], &mut errors);
    let lines = interrupts(asked, &mut errors);
    if !errors.is_empty() {
        return Err(errors);
    }
    let (mut memory, mut ports, mut lines) = (memory.into_iter(), ports.into_iter(), lines.into_iter());
    let (mut low, mut high) = (low.into_iter(), high.into_iter());
    let places = asked.iter().map(|asked| {
        let registers = asked.requires.registers.iter().map(|request| match request.space {
            AddressSpace::Mmio => memory.next().flatten(),
            AddressSpace::Pio => ports.next().flatten(),
        });
        let windows = asked.requires.windows.iter();
        Place {
            registers: registers.collect(),
            interrupts: lines.by_ref().take(asked.requires.interrupts.len()).collect(),
            windows: windows
                .filter_map(|request| if request.high { high.next() } else { low.next() })
                .collect(),
        }
    });
    Ok(places.collect())
}

/// I/O ports. Whether there are any is known by the virtual machine.
fn port_space() -> Space {
    Space::new([PORTS]).with_fixed_only([ALL_PORTS])
}

/// The places of all windows that are `high` or not, in the order of the devices. None where there is no room for all.
fn windows(
    asked: &[Asked<'_>],
    high: bool,
    space: Space,
    errors: &mut Vec<BuildError>,
) -> Vec<RangeInclusive<u64>> {
    let (mut requests, mut least) = (Vec::new(), Vec::new());
    for asked in asked {
        let windows = asked.requires.windows.iter().enumerate().filter(|(_, request)| request.high == high);
        // Others contradict themselves, which is told.
        for (index, request) in windows.filter(|(_, request)| request.size.is_power_of_two()) {
            let kept = asked.windows.and_then(|windows| windows.get(index));
            let placement = kept.map_or(Placement::Any, |window| Placement::Fixed(*window.start()));
            let size = kept.map_or(request.size, |window| window.end() - window.start() + 1);
            requests.push(Request { owner: asked.id.to_owned(), size, align: size, placement });
            least.push(if kept.is_some() { size } else { request.least });
        }
    }
    let count = requests.len();
    if count == 0 {
        return Vec::new();
    }
    let mut space = space;
    if high {
        // Another host, or less RAM, may have put it where none is put here.
        let kept = requests.iter().filter_map(|request| match request.placement {
            Placement::Fixed(first) => Some(first..=first.saturating_add(request.size.saturating_sub(1))),
            Placement::Any => None,
        });
        space = space.with_fixed_only(kept);
    }
    // What is fixed is in the way of the low ones. What is in its own way is told where registers get their places.
    let registers = asked.iter().flat_map(|asked| asked.requires.registers.iter().map(move |r| (asked, r)));
    for (asked, request) in registers.filter(|(_, r)| !high && r.space == AddressSpace::Mmio && !r.unplaced) {
        if let Placement::Fixed(base) = request.placement {
            let last = base.saturating_add(request.size.saturating_sub(1));
            space = space.with_fixed_only([base..=last]);
            let (owner, size) = (asked.id.to_owned(), request.size);
            requests.push(Request { owner, size, align: 1, placement: Placement::Fixed(base) });
        }
    }
    while layout::solve(&space, &requests).is_err() && halve(&mut requests, &least) {}
    let sizes: Vec<u64> = requests.iter().take(count).map(|request| request.size).collect();
    let kind = if high { "memory addresses above 4 GiB to hand on" } else { "memory addresses to hand on" };
    let places = solve(kind, &space, &requests, errors);
    places.into_iter().zip(sizes).map(|(base, size)| base..=base + (size - 1)).collect()
}

/// Halves the requests that are larger than the `least` that does. Returns false if none is.
fn halve(requests: &mut [Request], least: &[u64]) -> bool {
    let mut halved = false;
    for (request, least) in requests.iter_mut().zip(least).filter(|(request, least)| request.size > **least) {
        request.size = (request.size / 2).max(*least);
        request.align = request.size;
        halved = true;
    }
    halved
}

/// Where one range of registers is.
enum Answer {
    Nowhere,
    /// Where it has moved to, in a window.
    Kept(u64),
    /// Where the solver puts it.
    Solved,
}

/// The places of all registers in `space`, in the order of the devices. None is put into a window.
fn registers(
    asked: &[Asked<'_>],
    space: AddressSpace,
    kind: &'static str,
    mut room: Space,
    windows: &[RangeInclusive<u64>],
    errors: &mut Vec<BuildError>,
) -> Vec<Option<u64>> {
    let mut requests = Vec::new();
    for window in windows {
        room = room.with_fixed_only([window.clone()]);
        let (owner, size) = ("a window".to_owned(), window.end() - window.start() + 1);
        requests.push(Request { owner, size, align: 1, placement: Placement::Fixed(*window.start()) });
    }
    let mut answers = Vec::new();
    for asked in asked {
        for (index, request) in asked.requires.registers.iter().enumerate() {
            if request.space != space {
                continue;
            }
            let kept = match asked.place {
                Some(place) => Some(place.registers.get(index).copied().flatten()),
                None => request.unplaced.then_some(None),
            };
            let placement = match kept {
                Some(None) => {
                    answers.push(Answer::Nowhere);
                    continue;
                }
                Some(Some(base))
                    if request.movable && windows.iter().any(|window| window.contains(&base)) =>
                {
                    answers.push(Answer::Kept(base));
                    continue;
                }
                Some(Some(base)) => {
                    // It may have been moved to where no device is put at first.
                    room = room.with_fixed_only([base..=base.saturating_add(request.size.saturating_sub(1))]);
                    Placement::Fixed(base)
                }
                None => request.placement,
            };
            answers.push(Answer::Solved);
            let owner = asked.id.to_owned();
            requests.push(Request { owner, size: request.size, align: request.align, placement });
        }
    }
    let mut places = solve(kind, &room, &requests, errors).into_iter().skip(windows.len());
    let places = answers.into_iter().map(|answer| match answer {
        Answer::Nowhere => None,
        Answer::Kept(base) => Some(base),
        Answer::Solved => places.next(),
    });
    places.collect()
}

/// The lines of all interrupts, in the order of the devices. Edges have their lines for themselves; levels share where
/// there are not enough.
fn interrupts(asked: &[Asked<'_>], errors: &mut Vec<BuildError>) -> Vec<u32> {
    struct Wanted<'a> {
        owner: &'a str,
        trigger: Trigger,
        placement: Placement,
    }
    let mut wanted = Vec::new();
    for asked in asked {
        for (index, request) in asked.requires.interrupts.iter().enumerate() {
            let kept = asked.place.and_then(|place| place.interrupts.get(index));
            let placement = kept.map_or(request.placement, |&line| Placement::Fixed(line.into()));
            wanted.push(Wanted { owner: asked.id, trigger: request.trigger, placement });
        }
    }
    let mut requests: Vec<Request> = Vec::new();
    let mut request = |owner: &str, placement| {
        requests.push(Request { owner: owner.to_owned(), size: 1, align: 1, placement });
        requests.len() - 1
    };
    // Which request each interrupt is answered by.
    let mut answered: Vec<Option<usize>> = vec![None; wanted.len()];
    let mut shared: Vec<(u64, usize)> = Vec::new();
    let mut floating = Vec::new();
    for (index, wanted) in wanted.iter().enumerate() {
        let answer = match (wanted.trigger, wanted.placement) {
            (Trigger::Edge, placement) => Some(request(wanted.owner, placement)),
            (Trigger::Level, Placement::Fixed(line)) => {
                let known = shared.iter().find(|(other, _)| *other == line).map(|(_, request)| *request);
                Some(known.unwrap_or_else(|| {
                    let new = request(wanted.owner, wanted.placement);
                    shared.push((line, new));
                    new
                }))
            }
            (Trigger::Level, Placement::Any) => {
                floating.push(index);
                None
            }
        };
        if let Some(place) = answered.get_mut(index) {
            *place = answer;
        }
    }
    let fixed = |line: u64| wanted.iter().any(|wanted| wanted.placement == Placement::Fixed(line));
    let edges = wanted.iter().filter(|w| w.trigger == Trigger::Edge && w.placement == Placement::Any).count();
    let free = arch::lines().filter(|line| !fixed(*line)).count().saturating_sub(edges);
    // Who shares with whom depends on the names alone.
    floating.sort_by_key(|&index| wanted.get(index).map(|wanted| wanted.owner));
    let own = floating.len().min(free);
    let mut sharers: Vec<usize> = shared.iter().map(|(_, request)| *request).collect();
    for (nth, index) in floating.into_iter().enumerate() {
        let owner = wanted.get(index).map_or("", |wanted| wanted.owner);
        let answer = match sharers.get(nth.wrapping_sub(own) % sharers.len().max(1)) {
            Some(&other) if nth >= own => other,
            _ => {
                let new = request(owner, Placement::Any);
                sharers.push(new);
                new
            }
        };
        if let Some(place) = answered.get_mut(index) {
            *place = Some(answer);
        }
    }
    let lines = solve(INTERRUPTS, &arch::line_space(), &requests, errors);
    answered.into_iter().filter_map(|answer| lines.get(answer?).map(|line| *line as u32)).collect()
}

fn solve(kind: &'static str, space: &Space, requests: &[Request], errors: &mut Vec<BuildError>) -> Vec<u64> {
    layout::solve(space, requests).unwrap_or_else(|conflicts: Vec<Conflict>| {
        let (no_room, others): (Vec<_>, Vec<_>) =
            conflicts.into_iter().partition(|conflict| matches!(conflict, Conflict::NoRoom { .. }));
        errors.extend(others.into_iter().map(|conflict| BuildError::Layout { kind, conflict }));
        if !no_room.is_empty() {
            let takes = |request: &&Request| space.asked(std::slice::from_ref(*request)) > 0;
            let mut takers: Vec<_> =
                requests.iter().filter(takes).map(|request| request.owner.clone()).collect();
            takers.sort();
            takers.dedup();
            let fixed = requests.iter().filter(takes).filter_map(|request| match request.placement {
                Placement::Fixed(at) => Some(format!("{} at {at:#x}+{:#x}", request.owner, request.size)),
                Placement::Any => None,
            });
            let mut in_the_way: Vec<_> = fixed.collect();
            in_the_way.sort();
            errors.push(BuildError::Exhausted {
                kind,
                available: space.room(),
                asked: space.asked(requests),
                takers,
                room: space.windows().collect(),
                in_the_way,
            });
        }
        Vec::new()
    })
}

/// Requests of one device that contradict each other.
fn contradictions(id: &str, requires: &Requires) -> Vec<BuildError> {
    let mut errors = Vec::new();
    let mut bad = |what: String| errors.push(BuildError::BadRequest { id: id.to_owned(), what });
    let mut names = Vec::new();
    let page = host_page_size() as u64;
    for request in &requires.registers {
        names.push(("registers", request.name));
        for doorbell in &request.doorbells {
            names.push(("doorbell", doorbell.name));
            let end = doorbell.offset.checked_add(doorbell.size.bytes());
            if end.is_none_or(|end| end > request.size) {
                bad(format!(
                    "a doorbell {} at {:#x} of its {}, which have no such place",
                    doorbell.name, doorbell.offset, request.name
                ));
            }
        }
        let whole = request.space == AddressSpace::Mmio && request.size == page && request.align % page == 0;
        if request.page && !whole {
            bad(format!("a register page for its {}, which are not one page of memory", request.name));
        }
    }
    names.extend(requires.interrupts.iter().map(|request| ("interrupt", request.name)));
    names.extend(requires.messages.iter().map(|request| ("messages", request.name)));
    for request in requires.windows.iter().filter(|request| !request.size.is_power_of_two()) {
        bad(format!(
            "a window {} of {:#x} bytes, which is not a power of two, as the sizes of windows are",
            request.name, request.size
        ));
    }
    names.extend(requires.windows.iter().map(|request| ("window", request.name)));
    names.sort();
    for pair in names.windows(2) {
        if let [one, other] = pair {
            if one == other {
                bad(format!("two things named {}, both {}", one.1, one.0));
            }
        }
    }
    for request in &requires.interrupts {
        if request.resample && request.trigger != Trigger::Level {
            bad(format!("an acknowledgement of its {}, which is not a level interrupt", request.name));
        }
    }
    errors
}

#[cfg(test)]
mod tests;
