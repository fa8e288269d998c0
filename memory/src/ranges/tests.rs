use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn it_is_a_set(edits in prop::collection::vec((any::<bool>(), 0usize..40, 0usize..12), 0..40), at in 0usize..40) {
        let mut ranges = Ranges::default();
        let mut numbers = BTreeSet::new();
        for (insert, start, len) in edits {
            if insert {
                ranges.insert(start..start + len);
                numbers.extend(start..start + len);
            } else {
                ranges.remove(start..start + len);
                numbers.retain(|number| !(start..start + len).contains(number));
            }
            prop_assert_eq!(ranges.0.iter().cloned().flatten().collect::<BTreeSet<_>>(), numbers.clone());
            prop_assert!(ranges.0.windows(2).all(|pair| pair[0].end < pair[1].start));
            prop_assert!(ranges.0.iter().all(|range| !range.is_empty()));
        }
        let cut = ranges.cut(at..at + 10);
        let all: Vec<usize> = cut.iter().flat_map(|(piece, _)| piece.clone()).collect();
        prop_assert_eq!(all, (at..at + 10).collect::<Vec<_>>());
        for (piece, inside) in cut {
            prop_assert!(!piece.is_empty());
            prop_assert!(piece.into_iter().all(|number| numbers.contains(&number) == inside));
        }
    }
}
