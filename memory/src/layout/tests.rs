use proptest::prelude::*;

use super::*;

fn any(owner: &str, size: u64, align: u64) -> Request {
    Request { owner: owner.into(), size, align, placement: Placement::Any }
}

fn fixed(owner: &str, at: u64, size: u64) -> Request {
    Request { owner: owner.into(), size, align: 1, placement: Placement::Fixed(at) }
}

#[test]
fn large_requests_come_first_and_holes_are_filled() {
    let space = Space::new([0x1000..=0xffff]);
    let requests = [
        any("small", 0x10, 0x10),
        any("large", 0x4000, 0x4000),
        fixed("uart", 0x1000, 8),
        any("mid", 0x1000, 0x1000),
    ];
    assert_eq!(solve(&space, &requests).unwrap(), [0x1010, 0x4000, 0x1000, 0x2000]);
}

#[test]
fn interrupt_numbers_are_ranges_of_one() {
    let space = Space::new([5..=15]);
    let requests = [any("b", 1, 1), fixed("com1", 5, 1), any("a", 1, 1), any("b", 1, 1)];
    assert_eq!(solve(&space, &requests).unwrap(), [7, 5, 6, 8]);
}

#[test]
fn windows_may_touch_overlap_and_be_empty() {
    #[allow(clippy::reversed_empty_ranges)]
    let space = Space::new([8..=15, 3..=2, 0..=3, 4..=7, 6..=9]);
    assert_eq!(space, Space::new([0..=15]));
    assert_eq!(solve(&space, &[any("all", 16, 16)]).unwrap(), [0]);
}

#[test]
fn the_whole_of_64_bits_can_be_used() {
    let space = Space::new([0..=u64::MAX]);
    let top = 1 << 63;
    assert_eq!(solve(&space, &[any("half", top, top), fixed("zero", 0, 1)]).unwrap(), [top, 0]);
    assert_eq!(solve(&space, &[fixed("most", 0, u64::MAX), any("last", 1, 1)]).unwrap(), [0, u64::MAX]);
    let last = [fixed("last", u64::MAX, 1), fixed("zero", 0, 1), any("too much", u64::MAX, 1)];
    assert!(
        matches!(&solve(&space, &last).unwrap_err()[..], [Conflict::NoRoom { owner, .. }] if owner == "too much")
    );
}

#[test]
fn all_conflicts_are_told_at_once() {
    let space = Space::new([0x100..=0x1ff, 0x300..=0x3ff]);
    let requests = [
        any("empty", 0, 1),
        any("odd", 1, 3),
        any("no alignment", 1, 0),
        Request { align: 0x10, ..fixed("misaligned", 0x108, 1) },
        fixed("below", 0xff, 2),
        fixed("between", 0x1ff, 0x102),
        fixed("wraps", u64::MAX, 2),
        fixed("first", 0x110, 0x20),
        fixed("second", 0x120, 0x20),
        fixed("third", 0x12f, 1),
        any("fits", 0x80, 0x80),
        any("huge", 0x101, 1),
    ];
    let conflicts = solve(&space, &requests).unwrap_err();
    let texts: Vec<String> = conflicts.iter().map(Conflict::to_string).collect();
    for expected in [
        "empty requests a range of size 0",
        "odd requests an alignment of 0x3, which is not a power of two",
        "no alignment requests an alignment of 0x0, which is not a power of two",
        "misaligned requests 0x108, which is not a multiple of its alignment 0x10",
        "below requests 0xff+0x2, which is outside of 0x100..=0x1ff, 0x300..=0x3ff",
        "between requests 0x1ff+0x102, which is outside of 0x100..=0x1ff, 0x300..=0x3ff",
        "wraps requests 0xffffffffffffffff+0x2, which is outside of 0x100..=0x1ff, 0x300..=0x3ff",
        "second at 0x120+0x20 overlaps first at 0x110+0x20",
        "third at 0x12f+0x1 overlaps first at 0x110+0x20",
        "third at 0x12f+0x1 overlaps second at 0x120+0x20",
        "no room for huge, which requests 0x101 aligned to 0x1",
    ] {
        assert!(texts.iter().any(|text| text == expected), "{expected}\n{texts:#?}");
    }
    assert_eq!(texts.len(), 11, "{texts:#?}");
}

#[test]
fn nothing_fits_into_nothing() {
    assert_eq!(solve(&Space::default(), &[]).unwrap(), [0u64; 0]);
    assert!(solve(&Space::default(), &[any("dev", 1, 1)]).is_err());
    assert!(solve(&Space::default(), &[fixed("dev", 0, 1)]).is_err());
}

fn spaces() -> impl Strategy<Value = Space> {
    // Small numbers, so that there is little room, and the end of all numbers, so that sums wrap.
    let base = prop_oneof![0u64..512, (u64::MAX - 300)..=u64::MAX];
    let window = (base, 0u64..200).prop_map(|(base, span)| base..=base.saturating_add(span));
    prop::collection::vec(window, 0..4).prop_map(Space::new)
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let place = prop_oneof![
        4 => Just(Placement::Any),
        1 => (0u64..512).prop_map(Placement::Fixed),
        1 => ((u64::MAX - 300)..=u64::MAX).prop_map(Placement::Fixed),
    ];
    let size = prop_oneof![0u64..40, Just(u64::MAX)];
    let align = prop_oneof![8 => (0u32..6).prop_map(|log| 1 << log), 1 => 0u64..5, 1 => Just(1 << 63)];
    let request = ("[a-c]", size, align, place).prop_map(|(owner, size, align, placement)| Request {
        owner,
        size,
        align,
        placement,
    });
    prop::collection::vec(request, 0..10)
}

/// Requests that have a chance to fit.
fn modest() -> impl Strategy<Value = Vec<Request>> {
    let request = ("[a-d]", 1u64..24, 0u32..4).prop_map(|(owner, size, log)| Request {
        owner,
        size,
        align: 1 << log,
        placement: Placement::Any,
    });
    prop::collection::vec(request, 0..10)
}

fn sorted(requests: &[Request], placed: &[u64]) -> Vec<(String, u64, u64, u64)> {
    let all = requests.iter().zip(placed);
    let mut all: Vec<_> = all.map(|(r, &at)| (r.owner.clone(), r.size, r.align, at)).collect();
    all.sort();
    all
}

proptest! {
    #[test]
    fn what_is_placed_is_aligned_inside_and_alone(space in spaces(), requests in prop_oneof![requests(), modest()]) {
        let Ok(placed) = solve(&space, &requests) else { return Ok(()) };
        prop_assert_eq!(placed.len(), requests.len());
        let mut ranges = Vec::new();
        for (request, &start) in requests.iter().zip(&placed) {
            prop_assert!(request.size != 0 && start % request.align == 0);
            let last = start.checked_add(request.size - 1).unwrap();
            prop_assert!(space.contains(start, last));
            if let Placement::Fixed(at) = request.placement {
                prop_assert_eq!(start, at);
            }
            ranges.push((start, last));
        }
        ranges.sort_unstable();
        prop_assert!(ranges.windows(2).all(|pair| pair[0].1 < pair[1].0));
    }

    #[test]
    fn the_order_of_the_requests_does_not_matter(
        space in spaces(),
        (requests, shuffled) in prop_oneof![requests(), modest()]
            .prop_flat_map(|requests| (Just(requests.clone()), Just(requests).prop_shuffle())),
    ) {
        match (solve(&space, &requests), solve(&space, &shuffled)) {
            (Ok(one), Ok(other)) => prop_assert_eq!(sorted(&requests, &one), sorted(&shuffled, &other)),
            (one, other) => prop_assert_eq!(one.unwrap_err(), other.unwrap_err()),
        }
    }

    #[test]
    fn a_layout_replayed_as_fixed_is_the_same_whatever_is_added(
        space in spaces(), requests in modest(), new in modest(),
    ) {
        let Ok(placed) = solve(&space, &requests) else { return Ok(()) };
        let mut all: Vec<Request> = requests.clone();
        all.iter_mut().zip(&placed).for_each(|(request, &at)| request.placement = Placement::Fixed(at));
        prop_assert_eq!(&solve(&space, &all).unwrap(), &placed);
        all.extend(new);
        match solve(&space, &all) {
            Ok(again) => prop_assert_eq!(&again[..placed.len()], &placed[..]),
            Err(conflicts) => {
                let room = conflicts.iter().all(|conflict| matches!(conflict, Conflict::NoRoom { .. }));
                prop_assert!(room, "{conflicts:?}");
            }
        }
    }

    #[test]
    fn a_single_request_is_refused_only_if_there_is_no_place(
        windows in prop::collection::vec((0u64..200, 0u64..30), 0..4), size in 1u64..40, log in 0u32..5,
        blocks in prop::collection::vec((0u64..200, 1u64..20), 0..4),
    ) {
        let space = Space::new(windows.iter().map(|&(base, span)| base..=base + span));
        let blocks: Vec<_> = blocks.iter().map(|&(at, size)| fixed("block", at, size)).collect();
        if solve(&space, &blocks).is_err() {
            return Ok(());
        }
        let free = |at: u64| {
            windows.iter().any(|&(base, span)| (base..=base + span).contains(&at))
                && blocks.iter().all(|block| {
                    let Placement::Fixed(start) = block.placement else { return false };
                    at < start || at - start >= block.size
                })
        };
        let expected = (0..256).step_by(1 << log).find(|&at| (at..at + size).all(free));
        let mut all = blocks.clone();
        all.push(any("one", size, 1 << log));
        prop_assert_eq!(solve(&space, &all).ok().map(|placed| *placed.last().unwrap()), expected);
    }
}

#[test]
fn numbers_for_fixed_requests_only_are_not_handed_out() {
    let space = Space::new([5..=5, 7..=8]).with_fixed_only([0..=6]);
    let request = |owner: &str, placement| Request { owner: owner.into(), size: 1, align: 1, placement };
    let any = |owner| request(owner, Placement::Any);
    let requests = [any("a"), request("com1", Placement::Fixed(4)), any("b"), any("c"), any("d")];
    assert_eq!(solve(&space, &requests[..4]), Ok(vec![5, 4, 7, 8]));
    let conflicts = solve(&space, &requests).unwrap_err();
    assert_eq!(conflicts, [Conflict::NoRoom { owner: "d".into(), size: 1, align: 1 }]);
}
