use proptest::prelude::*;

use super::*;

fn space() -> Space {
    Space { fixed: vec![0..0x1000, 0x2000..0x3000], any: vec![0x100..0x400, 0x2800..0x3000] }
}

fn any(owner: &str, size: u64, align: u64) -> Request {
    Request { owner: owner.to_owned(), size, align, placement: Placement::Any }
}

fn fixed(owner: &str, base: u64, size: u64) -> Request {
    Request { owner: owner.to_owned(), size, align: 1, placement: Placement::Fixed(base) }
}

#[test]
fn all_conflicts_are_told_at_once_with_both_names() {
    let requests = [
        any("nothing", 0, 1),
        any("odd", 1, 3),
        Request { align: 0x10, ..fixed("askew", 0x108, 8) },
        fixed("gap", 0xff8, 0x10),
        fixed("wraps", u64::MAX, 2),
        fixed("a", 0x200, 0x100),
        fixed("b", 0x2ff, 1),
        any("huge", 0x10_0000, 1),
    ];
    let conflicts = solve(&space(), &requests).unwrap_err();
    let texts: Vec<String> = conflicts.iter().map(ToString::to_string).collect();
    assert_eq!(
        texts,
        [
            "\"nothing\" asks for 0 of it",
            "\"odd\" asks for an alignment of 0x3, which is not a power of two",
            "\"askew\" is fixed at 0x108, which is not aligned to 0x10",
            "\"gap\" is fixed at 0xff8+0x10, where there is no room for it",
            "\"wraps\" is fixed at 0xffffffffffffffff+0x2, where there is no room for it",
            "\"b\" at 0x2ff+0x1 overlaps \"a\" at 0x200+0x100",
            "\"huge\" needs 0x100000, aligned to 0x1, and no such room is left",
        ]
    );
}

#[test]
fn a_small_range_inside_a_long_one_is_found_behind_another() {
    let requests = [fixed("long", 0x200, 0x100), fixed("x", 0x210, 1), fixed("y", 0x220, 1)];
    let conflicts = solve(&space(), &requests).unwrap_err();
    assert!(
        matches!(&conflicts[..], [Conflict::Overlap { owner: x, .. }, Conflict::Overlap { owner: y, other, .. }]
        if x == "x" && y == "y" && other == "long")
    );
}

#[test]
fn what_has_no_place_goes_around_what_has_one() {
    let requests =
        [any("a", 0x10, 0x10), fixed("early", 0xf8, 0x10), any("b", 0x8, 0x8), fixed("c", 0x118, 8)];
    assert_eq!(solve(&space(), &requests), Ok(vec![0x120, 0xf8, 0x108, 0x118]));
}

#[test]
fn a_full_window_makes_way_for_the_next() {
    let requests = [any("a", 0x300, 1), any("b", 0x300, 1)];
    assert_eq!(solve(&space(), &requests), Ok(vec![0x100, 0x2800]));
}

fn requests() -> impl Strategy<Value = Vec<Request>> {
    let one = (0_u64..0x200, 0_u32..7, proptest::option::weighted(0.3, 0_u64..0x3000));
    proptest::collection::vec(one, 0..12).prop_map(|list| {
        list.into_iter()
            .enumerate()
            .map(|(i, (size, align, at))| Request {
                owner: format!("dev{i}"),
                size,
                align: 1 << align,
                placement: at.map_or(Placement::Any, |at| Placement::Fixed(at & !((1 << align) - 1))),
            })
            .collect()
    })
}

proptest! {
    #[test]
    fn places_are_sound(requests in requests()) {
        let space = space();
        let Ok(places) = solve(&space, &requests) else { return Ok(()) };
        let ranges: Vec<_> = requests.iter().zip(&places).map(|(r, &base)| base..base + r.size).collect();
        for (i, (request, range)) in requests.iter().zip(&ranges).enumerate() {
            prop_assert_eq!(range.start % request.align, 0);
            let windows = match request.placement {
                Placement::Any => &space.any,
                Placement::Fixed(at) => {
                    prop_assert_eq!(range.start, at);
                    &space.fixed
                }
            };
            prop_assert!(windows.iter().any(|w| w.start <= range.start && range.end <= w.end));
            for other in &ranges[i + 1..] {
                prop_assert!(range.end <= other.start || other.end <= range.start);
            }
        }
    }

    #[test]
    fn the_order_of_requests_does_not_matter(
        (requests, shuffled) in requests().prop_flat_map(|r| (Just(r.clone()), Just(r).prop_shuffle())),
    ) {
        let by_owner = |requests: &[Request]| {
            solve(&space(), requests).map(|places| {
                let mut named: Vec<_> =
                    requests.iter().map(|r| r.owner.clone()).zip(places).collect();
                named.sort();
                named
            })
        };
        match (by_owner(&requests), by_owner(&shuffled)) {
            (Ok(a), Ok(b)) => prop_assert_eq!(a, b),
            (Err(a), Err(b)) => prop_assert_eq!(a.len(), b.len()),
            (a, b) => prop_assert!(false, "{a:?} against {b:?}"),
        }
    }

    #[test]
    fn what_exists_stays_when_it_is_replayed(requests in requests(), size in 1_u64..0x40) {
        let Ok(places) = solve(&space(), &requests) else { return Ok(()) };
        let space = Space { fixed: vec![0..0x4000], ..space() };
        let mut replayed: Vec<_> = requests
            .into_iter()
            .zip(&places)
            .map(|(r, &at)| Request { placement: Placement::Fixed(at), ..r })
            .collect();
        replayed.insert(0, any("newcomer", size, 1));
        if let Ok(again) = solve(&space, &replayed) {
            prop_assert_eq!(&again[1..], &places[..]);
        }
    }
}
