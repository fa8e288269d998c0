use proptest::prelude::*;

use super::*;

fn run(input: &[u8]) -> (Vec<u8>, Vec<Escape>) {
    let mut filter = EscapeFilter::new();
    let (bytes, keys): (Vec<_>, Vec<_>) = input.iter().map(|byte| filter.push(*byte)).unzip();
    (bytes.into_iter().flatten().collect(), keys.into_iter().flatten().collect())
}

#[test]
fn the_keys_of_both_cases() {
    assert_eq!(run(b"a\x01xb"), (b"ab".to_vec(), vec![Escape::Quit]));
    assert_eq!(run(b"\x01X\x01h\x01H"), (vec![], vec![Escape::Quit, Escape::Help, Escape::Help]));
}

#[test]
fn ctrl_a_twice_sends_one() {
    assert_eq!(run(b"\x01\x01x"), (b"\x01x".to_vec(), vec![]));
    assert_eq!(run(b"\x01a\x01A"), (b"\x01\x01".to_vec(), vec![]));
}

#[test]
fn an_unknown_key_is_dropped_with_its_prefix() {
    assert_eq!(run(b"1\x01q2\x01\r3"), (b"123".to_vec(), vec![]));
}

#[test]
fn a_prefix_waits_for_its_key() {
    let mut filter = EscapeFilter::new();
    assert_eq!(filter.push(1), (None, None));
    assert_eq!(filter.push(b'x'), (None, Some(Escape::Quit)));
    assert_eq!(filter.push(b'x'), (Some(b'x'), None));
}

proptest! {
    #[test]
    fn input_without_ctrl_a_passes_unchanged(input in prop::collection::vec(2u8.., 0..100)) {
        prop_assert_eq!(run(&input), (input, vec![]));
    }

    #[test]
    fn doubled_ctrl_a_passes_any_input(input in prop::collection::vec(any::<u8>(), 0..100)) {
        let typed: Vec<u8> = input.iter().flat_map(|b| if *b == 1 { vec![1, 1] } else { vec![*b] }).collect();
        prop_assert_eq!(run(&typed), (input, vec![]));
    }
}
