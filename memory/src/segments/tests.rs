use proptest::prelude::*;

use super::*;

/// Every byte address of the range, one by one.
fn addresses(segments: Segments<'_>) -> Vec<u64> {
    segments
        .iter()
        .flat_map(|segment| (0..segment.len.into()).map(move |byte| segment.addr.0 + byte))
        .collect()
}

fn lists() -> impl Strategy<Value = Vec<Segment>> {
    let segment = (0u64..1 << 40, 0u32..20).prop_map(|(addr, len)| Segment { addr: GuestAddress(addr), len });
    prop::collection::vec(segment, 0..8)
}

proptest! {
    #[test]
    fn ranges_are_those_of_the_bytes(list in lists(), cuts in prop::collection::vec((any::<bool>(), 0u64..40), 0..5)) {
        let mut segments = Segments::from(&list);
        let mut bytes: Vec<u64> =
            list.iter().flat_map(|s| (0..s.len.into()).map(move |byte| s.addr.0 + byte)).collect();
        for (skip, count) in cuts {
            let at = bytes.len().min(count as usize);
            if skip {
                segments = segments.skip(count);
                bytes.drain(..at);
            } else {
                segments = segments.take(count);
                bytes.truncate(at);
            }
            prop_assert_eq!(segments.len(), bytes.len() as u64);
            prop_assert_eq!(segments.is_empty(), bytes.is_empty());
            prop_assert!(segments.iter().all(|segment| segment.len != 0));
            prop_assert!(segments.iter().count() <= segments.max_pieces());
            prop_assert_eq!(addresses(segments), bytes.clone());
        }
    }
}

#[test]
fn extreme_lengths_neither_wrap_nor_panic() {
    let list = [Segment { addr: GuestAddress(u64::MAX), len: u32::MAX }; 3];
    let all = Segments::from(&list);
    assert_eq!(all.len(), 3 * u64::from(u32::MAX));
    assert!(all.skip(u64::MAX).is_empty());
    assert_eq!(all.skip(1).skip(u64::MAX - 1).len(), 0);
    assert_eq!(all.take(u64::MAX).skip(5).iter().count(), 3);
    assert!(Segments::default().skip(1).take(1).is_empty());
}
