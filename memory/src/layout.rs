//! The layout solver: who gets which addresses, as a pure function of who asks for what.
//!
//! It serves every space of numbers alike: memory addresses, I/O ports, interrupt lines. What it answers is part of
//! what a guest sees, so it depends on nothing but the set of requests: the order in which they are given does not
//! matter, and a [`Placement::Fixed`] request is where it says, whatever else there is. To place something beside
//! what exists, give what exists as fixed requests.

use std::ops::Range;

/// Where a request has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Placement {
    /// Exactly there.
    Fixed(u64),
    /// Wherever there is room.
    Any,
}

/// One thing that needs room.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Request {
    /// Who asks, for errors and as the tie-breaker: the same owner may ask more than once, the requests then keep
    /// their order among each other.
    pub owner: String,
    /// How much, not 0.
    pub size: u64,
    /// Alignment of the first number, a power of two.
    pub align: u64,
    /// Where.
    pub placement: Placement,
}

/// The numbers that there are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Where fixed requests may be: each has to lie in one of these ranges.
    pub fixed: Vec<Range<u64>>,
    /// Where all others are put, first range first, from its start.
    pub any: Vec<Range<u64>>,
}

/// Why a request has no place.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// Nothing was asked for.
    #[error("{owner:?} asks for 0 of it")]
    Empty {
        /// Who.
        owner: String,
    },
    /// Not a power of two.
    #[error("{owner:?} asks for an alignment of {align:#x}, which is not a power of two")]
    Alignment {
        /// Who.
        owner: String,
        /// The alignment.
        align: u64,
    },
    /// A fixed place that is not aligned as its own request asks.
    #[error("{owner:?} is fixed at {base:#x}, which is not aligned to {align:#x}")]
    Misaligned {
        /// Who.
        owner: String,
        /// The first number.
        base: u64,
        /// The alignment.
        align: u64,
    },
    /// A fixed place outside the space.
    #[error("{owner:?} is fixed at {base:#x}+{size:#x}, where there is no room for it")]
    Outside {
        /// Who.
        owner: String,
        /// The first number.
        base: u64,
        /// How much.
        size: u64,
    },
    /// Two fixed places that share a number.
    #[error("{owner:?} at {base:#x}+{size:#x} overlaps {other:?} at {other_base:#x}+{other_size:#x}")]
    Overlap {
        /// One of them.
        owner: String,
        /// Its first number.
        base: u64,
        /// How much it is.
        size: u64,
        /// The other one.
        other: String,
        /// Its first number.
        other_base: u64,
        /// How much it is.
        other_size: u64,
    },
    /// No room is left.
    #[error("{owner:?} needs {size:#x}, aligned to {align:#x}, and no such room is left")]
    Full {
        /// Who.
        owner: String,
        /// How much.
        size: u64,
        /// The alignment.
        align: u64,
    },
}

/// Gives each request its first number, in the order of `requests`, or says everything that is in the way.
///
/// Requests without a fixed place are put where they first fit: the largest first, then the most aligned, then by
/// owner.
///
/// ```
/// use ossature_memory::layout::{Placement, Request, Space, solve};
///
/// let space = Space { fixed: vec![0..0x1_0000], any: vec![0x1000..0x2000] };
/// let request = |owner: &str, size, placement| Request { owner: owner.into(), size, align: 8, placement };
/// let requests = [request("disk", 0x10, Placement::Any), request("com1", 8, Placement::Fixed(0x3f8))];
/// assert_eq!(solve(&space, &requests), Ok(vec![0x1000, 0x3f8]));
/// ```
pub fn solve(space: &Space, requests: &[Request]) -> Result<Vec<u64>, Vec<Conflict>> {
    let mut conflicts = Vec::new();
    let mut taken: Vec<Taken> = Vec::new();
    let mut floating = Vec::new();
    for (index, request) in requests.iter().enumerate() {
        match check(space, request) {
            Err(conflict) => conflicts.push(conflict),
            Ok(None) => floating.push((index, request)),
            Ok(Some(range)) => taken.push(Taken { index, request, range }),
        }
    }

    taken.sort_by(|a, b| (a.range.start, &a.request.owner).cmp(&(b.range.start, &b.request.owner)));
    // With the ranges in order, whoever overlaps starts before the farthest end so far.
    let mut reach: Option<&Taken> = None;
    for one in &taken {
        if let Some(before) = reach.filter(|before| one.range.start < before.range.end) {
            conflicts.push(overlap(one, before));
        }
        if reach.is_none_or(|before| before.range.end < one.range.end) {
            reach = Some(one);
        }
    }

    floating.sort_by(|(_, a), (_, b)| (b.size, b.align, &a.owner).cmp(&(a.size, a.align, &b.owner)));
    for (index, request) in floating {
        match room(space, &taken, request) {
            None => conflicts.push(Conflict::Full {
                owner: request.owner.clone(),
                size: request.size,
                align: request.align,
            }),
            Some(range) => {
                let at = taken.partition_point(|one| one.range.start < range.start);
                taken.insert(at, Taken { index, request, range });
            }
        }
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }
    taken.sort_by_key(|one| one.index);
    Ok(taken.into_iter().map(|one| one.range.start).collect())
}

/// A request with its place; lists of them are in the order of the places.
struct Taken<'a> {
    index: usize,
    request: &'a Request,
    range: Range<u64>,
}

/// The place of a fixed request, and whether a request makes sense at all.
fn check(space: &Space, request: &Request) -> Result<Option<Range<u64>>, Conflict> {
    let &Request { ref owner, size, align, placement } = request;
    if size == 0 {
        return Err(Conflict::Empty { owner: owner.clone() });
    }
    if !align.is_power_of_two() {
        return Err(Conflict::Alignment { owner: owner.clone(), align });
    }
    let Placement::Fixed(base) = placement else {
        return Ok(None);
    };
    if base % align != 0 {
        return Err(Conflict::Misaligned { owner: owner.clone(), base, align });
    }
    base.checked_add(size)
        .filter(|&end| space.fixed.iter().any(|range| range.start <= base && end <= range.end))
        .map(|end| Some(base..end))
        .ok_or_else(|| Conflict::Outside { owner: owner.clone(), base, size })
}

fn overlap(one: &Taken, other: &Taken) -> Conflict {
    Conflict::Overlap {
        owner: one.request.owner.clone(),
        base: one.range.start,
        size: one.request.size,
        other: other.request.owner.clone(),
        other_base: other.range.start,
        other_size: other.request.size,
    }
}

/// The first room that a request fits into.
fn room(space: &Space, taken: &[Taken], request: &Request) -> Option<Range<u64>> {
    space.any.iter().find_map(|window| {
        let mut base = window.start.checked_next_multiple_of(request.align)?;
        for one in taken {
            if one.range.start >= base.checked_add(request.size)? {
                break;
            }
            if one.range.end > base {
                base = one.range.end.checked_next_multiple_of(request.align)?;
            }
        }
        let end = base.checked_add(request.size)?;
        (end <= window.end).then_some(base..end)
    })
}

#[cfg(test)]
mod tests;
