//! The layout solver: which request gets which addresses, ports or interrupt numbers.
//!
//! Where things are is visible to guests: it is written into boot tables, remembered by drivers and saved in
//! snapshots. So [`solve`] is a pure function, and what it returns depends on the *set* of requests alone: the
//! order in which a program adds its devices does not matter. To get the same layout again, after a restore or
//! beside new devices, request what was assigned as [`Placement::Fixed`]; what is fixed never moves.
//!
//! ```
//! use ossature_memory::layout::{Placement, Request, Space, solve};
//!
//! let space = Space::new([0xc000_0000..=0xfebf_ffff]);
//! let any = |owner: &str, size| Request { owner: owner.into(), size, align: size, placement: Placement::Any };
//! let fixed = Request { placement: Placement::Fixed(0xc000_0000), ..any("timer", 0x1000) };
//!
//! let placed = solve(&space, &[any("net", 0x1000), fixed, any("disk", 0x2000)]).unwrap();
//! assert_eq!(placed, [0xc000_1000, 0xc000_0000, 0xc000_2000]);
//! ```

use std::cmp::Reverse;
use std::ops::RangeInclusive;

/// Where something has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Exactly there (an address, a port, an interrupt number): guests expect it by convention.
    Fixed(u64),
    /// Wherever the machine finds room.
    Any,
}

/// What kind of device a range or an interrupt belongs to, as the boot tables describe it to the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum NodeKind {
    /// Not described: the guest knows about it, or does not need to.
    Hidden,
    /// A virtio-mmio transport: one memory range, one interrupt.
    VirtioMmio,
    /// A 16550 UART: eight ports, one interrupt.
    Serial16550,
    /// An MC146818-compatible clock: its ports, and its interrupt if it has one.
    Rtc,
    /// An i8042 keyboard controller: ports 0x60 and 0x64 (or one range that holds both), and its interrupt
    /// if it has one.
    I8042,
    /// Three byte-wide ports in this order: ACPI sleep control, sleep status, and the reset register
    /// (whose value the boot tables name); an interrupt stands for the power button.
    AcpiPower,
    /// A power button that is an interrupt alone, which is raised when it is pressed.
    PowerButton,
    /// A pvpanic port.
    Pvpanic,
    /// A PCI root bus (segment 0, bus 0 alone), in this order: its configuration space in memory (ECAM), its ports of
    /// configuration space, and 16 ports of the registers for hotplug (UP, DOWN, EJECT and PRESENT, 32 bits each, a bit
    /// for each slot); an interrupt that tells of changes in the first two of these. Where there are no ports, the
    /// registers for hotplug are in memory, and follow the configuration space. Its windows are memory that it hands on to
    /// its functions.
    PciHost,
    /// A VM generation ID (Microsoft's "Virtual Machine Generation ID"): memory that is not RAM and begins with the ID,
    /// and an interrupt that tells of a new one.
    VmGenId,
    /// A firmware configuration device (QEMU's `docs/specs/fw_cfg`): 12 ports, or 24 bytes of memory where there are no ports.
    FwCfg,
    /// A PL011 UART: one page of memory, one interrupt.
    Pl011,
    /// A PL031 clock: one page of memory, and its interrupt if it has one.
    Pl031,
    /// An interrupt controller of the kind GICv2, in this order: the distributor, and the interface that all processors
    /// have at the same address, in memory.
    GicV2,
    /// An interrupt controller of the kind GICv3, in this order: the distributor, and the redistributors of all
    /// processors, in memory.
    GicV3,
    /// Performance monitors (PMUv3) of all processors, with the interrupt of each that Arm's base system architecture names.
    PmuV3,
    /// The part of a GICv3 that makes messages interrupts (ITS): its registers, and the page that messages are written to,
    /// in memory.
    GicV3Its,
}

/// How an interrupt line is raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Trigger {
    /// By a change: each signal is one interrupt. The line belongs to one device.
    Edge,
    /// By a state: the line interrupts for as long as a device asserts it. Devices may share it.
    Level,
}

/// Numbers to hand out, in one or more windows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// Where requests without a place of their own are put: ascending, disjoint, none empty.
    windows: Vec<(u64, u64)>,
    /// Where fixed requests may be: the same and more.
    fixed: Vec<(u64, u64)>,
}

impl Space {
    /// The numbers in `windows`, which may overlap and come in any order.
    pub fn new(windows: impl IntoIterator<Item = RangeInclusive<u64>>) -> Self {
        let windows = windows.into_iter().filter(|range| !range.is_empty()).map(RangeInclusive::into_inner);
        let windows = union(windows.collect());
        Self { fixed: windows.clone(), windows }
    }

    /// The same with more numbers, which are given only to requests for exactly them: by convention, such as the
    /// interrupt of a serial port.
    #[must_use]
    pub fn with_fixed_only(mut self, windows: impl IntoIterator<Item = RangeInclusive<u64>>) -> Self {
        self.fixed.extend(Self::new(windows).windows);
        self.fixed = union(self.fixed);
        self
    }

    /// The numbers that are there for requests without a place of their own.
    pub fn windows(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.windows.iter().map(|&(first, last)| first..=last)
    }

    /// How many numbers are there for requests without a place of their own.
    pub fn room(&self) -> u64 {
        self.windows
            .iter()
            .fold(0, |sum: u64, (first, last)| sum.saturating_add((last - first).saturating_add(1)))
    }

    /// How many of the numbers in `start..=last` are among those.
    fn room_in(&self, start: u64, last: u64) -> u64 {
        let inside = |&(first, end): &(u64, u64)| {
            let (low, high) = (first.max(start), end.min(last));
            if low <= high { (high - low).saturating_add(1) } else { 0 }
        };
        self.windows.iter().map(inside).fold(0, u64::saturating_add)
    }

    /// How many of them the requests ask for.
    pub fn asked(&self, requests: &[Request]) -> u64 {
        let asked = |request: &Request| match request.placement {
            Placement::Any => request.size,
            Placement::Fixed(at) => match request.size.checked_sub(1) {
                Some(span) => self.room_in(at, at.saturating_add(span)),
                None => 0,
            },
        };
        requests.iter().map(asked).fold(0, u64::saturating_add)
    }

    fn contains(&self, start: u64, last: u64) -> bool {
        self.fixed.iter().any(|&(first, end)| first <= start && last <= end)
    }
}

/// A request for numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Whose request it is: a device's id, for messages and as the last tie-break of the order.
    pub owner: String,
    /// How many, not 0.
    pub size: u64,
    /// What the first one is a multiple of; a power of two.
    pub align: u64,
    /// Where.
    pub placement: Placement,
}

/// A request that cannot be met.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// It is for nothing.
    #[error("{owner} requests a range of size 0")]
    Empty {
        /// Who.
        owner: String,
    },
    /// The alignment is not a power of two.
    #[error("{owner} requests an alignment of {align:#x}, which is not a power of two")]
    Align {
        /// Who.
        owner: String,
        /// The alignment.
        align: u64,
    },
    /// The fixed place is not aligned as the request itself asks.
    #[error("{owner} requests {at:#x}, which is not a multiple of its alignment {align:#x}")]
    Misaligned {
        /// Who.
        owner: String,
        /// The fixed place.
        at: u64,
        /// The alignment.
        align: u64,
    },
    /// The fixed place is not in any window, or not all of it is.
    #[error("{owner} requests {at:#x}+{size:#x}, which is outside of {}", hexadecimal(space))]
    Outside {
        /// Who.
        owner: String,
        /// The fixed place.
        at: u64,
        /// How many.
        size: u64,
        /// Where it may be.
        space: Vec<RangeInclusive<u64>>,
    },
    /// Two fixed requests share numbers.
    #[error("{owner} at {at:#x}+{size:#x} overlaps {other} at {other_at:#x}+{other_size:#x}")]
    Overlap {
        /// Who.
        owner: String,
        /// The fixed place.
        at: u64,
        /// How many.
        size: u64,
        /// The other owner; the request with the lower place, and of equals the one that sorts first.
        other: String,
        /// Where that one is.
        other_at: u64,
        /// How many it needs.
        other_size: u64,
    },
    /// There is no gap that is large enough.
    #[error("no room for {owner}, which requests {size:#x} aligned to {align:#x}")]
    NoRoom {
        /// Who.
        owner: String,
        /// How many.
        size: u64,
        /// The alignment.
        align: u64,
    },
}

/// The first number of each request, in the order of `requests`; or everything that is in the way, in an order
/// that depends on the set of requests only.
///
/// Fixed requests are where they say. The others follow by falling alignment, falling size and rising owner,
/// each at the lowest place that is free, so that large ones leave no holes. Requests that are the same in all
/// this, which only one owner can make, are placed in the order of the slice.
pub fn solve(space: &Space, requests: &[Request]) -> Result<Vec<u64>, Vec<Conflict>> {
    let mut order: Vec<usize> = (0..requests.len()).collect();
    order.sort_by_key(|&index| {
        let request = requests.get(index);
        request.map(|r| (Reverse(r.align), Reverse(r.size), r.owner.as_str(), place(r)))
    });
    let mut conflicts = Vec::new();
    let mut fixed: Vec<(u64, u64, &Request)> = Vec::new();
    let mut any = Vec::new();
    for (index, request) in order.into_iter().filter_map(|index| Some((index, requests.get(index)?))) {
        match check(space, request) {
            Err(conflict) => conflicts.push(conflict),
            Ok(Some((start, last))) => fixed.push((start, last, request)),
            Ok(None) => any.push((index, request)),
        }
    }

    fixed.sort_by_key(|&(start, ..)| start);
    for (index, &(start, last, other)) in fixed.iter().enumerate() {
        let above = fixed.iter().skip(index + 1).take_while(|&&(start, ..)| start <= last);
        conflicts.extend(above.map(|&(at, _, request)| Conflict::Overlap {
            owner: request.owner.clone(),
            at,
            size: request.size,
            other: other.owner.clone(),
            other_at: start,
            other_size: other.size,
        }));
    }

    let mut placed: Vec<u64> = requests.iter().map(|request| place(request).unwrap_or_default()).collect();
    let mut taken = union(fixed.into_iter().map(|(start, last, _)| (start, last)).collect());
    for (index, request) in any {
        match first_fit(space, &taken, request) {
            Some(start) => {
                let at = taken.partition_point(|&(other, _)| other < start);
                taken.insert(at, (start, start + (request.size - 1)));
                placed.get_mut(index).into_iter().for_each(|place| *place = start);
            }
            None => conflicts.push(Conflict::NoRoom {
                owner: request.owner.clone(),
                size: request.size,
                align: request.align,
            }),
        }
    }
    if conflicts.is_empty() { Ok(placed) } else { Err(conflicts) }
}

/// Ranges as people read addresses.
fn hexadecimal(ranges: &[RangeInclusive<u64>]) -> String {
    let ranges = ranges.iter().map(|range| format!("{:#x}..={:#x}", range.start(), range.end()));
    let ranges: Vec<_> = ranges.collect();
    if ranges.is_empty() { "an empty space".to_owned() } else { ranges.join(", ") }
}

fn place(request: &Request) -> Option<u64> {
    match request.placement {
        Placement::Fixed(start) => Some(start),
        Placement::Any => None,
    }
}

/// What the request says by itself: its first and last number, where these are fixed.
fn check(space: &Space, request: &Request) -> Result<Option<(u64, u64)>, Conflict> {
    let &Request { size, align, .. } = request;
    let owner = || request.owner.clone();
    let Some(span) = size.checked_sub(1) else {
        return Err(Conflict::Empty { owner: owner() });
    };
    if !align.is_power_of_two() {
        return Err(Conflict::Align { owner: owner(), align });
    }
    let Some(at) = place(request) else { return Ok(None) };
    if at % align != 0 {
        return Err(Conflict::Misaligned { owner: owner(), at, align });
    }
    match at.checked_add(span).filter(|&last| space.contains(at, last)) {
        Some(last) => Ok(Some((at, last))),
        None => {
            let space = space.fixed.iter().map(|&(first, last)| first..=last).collect();
            Err(Conflict::Outside { owner: owner(), at, size, space })
        }
    }
}

/// The lowest place in `space` and outside `taken` (ascending, disjoint) for a request that [`check`] accepted.
fn first_fit(space: &Space, taken: &[(u64, u64)], request: &Request) -> Option<u64> {
    let fit = |low: u64, high: u64| {
        let start = low.checked_next_multiple_of(request.align)?;
        let last = start.checked_add(request.size - 1)?;
        (last <= high).then_some(start)
    };
    space.windows.iter().find_map(|&(low, high)| {
        let mut low = low;
        let first = taken.partition_point(|&(_, last)| last < low);
        for &(start, last) in taken.iter().skip(first).take_while(|&&(start, _)| start <= high) {
            if let Some(place) = start.checked_sub(1).filter(|&end| low <= end).and_then(|end| fit(low, end))
            {
                return Some(place);
            }
            low = last.checked_add(1)?;
        }
        if low <= high { fit(low, high) } else { None }
    })
}

/// The same numbers as ascending, disjoint ranges that do not touch.
fn union(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut union: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (start, last) in ranges {
        match union.last_mut() {
            Some((_, end)) if start <= end.saturating_add(1) => *end = last.max(*end),
            _ => union.push((start, last)),
        }
    }
    union
}

#[cfg(test)]
mod tests;
