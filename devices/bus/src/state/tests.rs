use std::os::fd::AsRawFd;

use proptest::prelude::*;

use super::*;

const KIND: &str = "test";

const A: Field = Field::new(1, "a");
const B: Field = Field::new(2, "b");
const C: Field = Field::new(0x300, "c");
const D: Field = Field::new(0x301, "d");
const SKIPPABLE: Field = Field::new(0x8000, "skippable");

fn state(payload: &[u8]) -> SavedState<'_> {
    SavedState::new(KIND, 2, payload)
}

#[test]
fn every_field_has_its_place_behind_its_tag_and_its_length() {
    let mut fields = Encoder::new(KIND, 2);
    fields.u8(A, 1).u16(B, 0x302).u32(C, 0x706_0504);
    fields.nested(D, |record| {
        record.bool(A, true).bytes(B, b"abc");
    });
    fields.list(SKIPPABLE, [7, 8], |record, number| {
        record.u8(C, number);
    });
    let expected = [
        &b"\x01\0\x01\0\0\0\x01"[..],
        b"\x02\0\x02\0\0\0\x02\x03",
        b"\0\x03\x04\0\0\0\x04\x05\x06\x07",
        b"\x01\x03\x10\0\0\0\x01\0\x01\0\0\0\x01\x02\0\x03\0\0\0abc",
        b"\0\x80\x16\0\0\0\x07\0\0\0\0\x03\x01\0\0\0\x07\x07\0\0\0\0\x03\x01\0\0\0\x08",
    ];
    assert_eq!(fields.finish(), state(&expected.concat()));
}

#[test]
#[should_panic(expected = "after")]
#[cfg(debug_assertions)]
fn fields_are_written_in_the_order_of_their_tags() {
    Encoder::new(KIND, 2).u8(B, 1).u8(A, 1);
}

#[test]
fn another_kind_and_another_version_are_refused() {
    let refused = Decoder::new(&state(b""), "other", 2..=2).unwrap_err();
    assert_eq!(refused, StateError::Kind { expected: "other", found: KIND.into() });
    for known in [0..=1, 3..=u16::MAX, 0..=0] {
        let refused = Decoder::new(&state(b""), KIND, known.clone()).unwrap_err();
        assert_eq!(refused, StateError::Version { kind: KIND, found: 2, known });
    }
    for known in [0..=2, 2..=2, 2..=9] {
        Decoder::new(&state(b""), KIND, known).unwrap().finish().unwrap();
    }
}

/// Reads `payload` as a truth value and bytes of at most 3.
fn read(payload: &[&[u8]]) -> Result<(bool, Vec<u8>), StateError> {
    let payload = payload.concat();
    let saved = state(&payload);
    let mut fields = Decoder::new(&saved, KIND, 1..=2)?;
    let read = (fields.bool(A)?, fields.bytes(C, 3)?.to_vec());
    fields.finish().map(|()| read)
}

const FLAG: &[u8] = b"\x01\0\x01\0\0\0\x01";
const TEXT: &[u8] = b"\0\x03\x02\0\0\0ab";
/// A field that nobody knows, and one that nobody needs to know.
const UNKNOWN: [&[u8]; 2] = [b"\x02\0\0\0\0\0", b"\x01\x80\x01\0\0\0x"];

#[test]
fn d2_what_is_short_long_or_left_over_is_refused_by_its_name() {
    assert_eq!(read(&[FLAG, TEXT]), Ok((true, b"ab".to_vec())));
    for len in 1..FLAG.len() {
        assert_eq!(read(&[&FLAG[..len]]), Err(StateError::Truncated { field: "a" }), "{len}");
    }
    for len in 1..TEXT.len() {
        assert_eq!(read(&[FLAG, &TEXT[..len]]), Err(StateError::Truncated { field: "c" }), "{len}");
    }
    let flag = |len: u8, value: &[u8]| read(&[b"\x01\0", &[len, 0, 0, 0], value, TEXT]);
    assert_eq!(flag(1, b"\x02"), Err(StateError::Value { field: "a", value: 2 }));
    assert_eq!(flag(0, b""), Err(StateError::Truncated { field: "a" }));
    assert_eq!(flag(2, b"\x01\0"), Err(StateError::TooLong { field: "a", len: 2, max: 1 }));
    let text = |len: &[u8]| read(&[FLAG, b"\0\x03", len, b"abcd"]);
    assert_eq!(text(b"\x04\0\0\0"), Err(StateError::TooLong { field: "c", len: 4, max: 3 }));
    assert_eq!(text(b"\xff\xff\xff\xff"), Err(StateError::Truncated { field: "c" }));
    assert_eq!(text(b"\x03\0\0\0"), Err(StateError::Trailing { bytes: 1 }));
}

#[test]
fn d2_fields_that_are_missing_double_misplaced_or_unknown_are_refused() {
    assert_eq!(read(&[]), Err(StateError::Missing { field: "a" }));
    assert_eq!(read(&[TEXT]), Err(StateError::Missing { field: "a" }));
    assert_eq!(read(&[FLAG]), Err(StateError::Missing { field: "c" }));
    assert_eq!(read(&[FLAG, FLAG, TEXT]), Err(StateError::Duplicate { tag: 1 }));
    assert_eq!(read(&[FLAG, TEXT, TEXT]), Err(StateError::Duplicate { tag: 0x300 }));
    assert_eq!(read(&[FLAG, TEXT, FLAG]), Err(StateError::Order { tag: 1, after: 0x300 }));
    let [unknown, skippable] = UNKNOWN;
    assert_eq!(read(&[unknown, FLAG, TEXT]), Err(StateError::Missing { field: "a" }));
    assert_eq!(read(&[FLAG, unknown, TEXT]), Err(StateError::UnknownField { tag: 2 }));
    assert_eq!(read(&[FLAG, TEXT, b"\x01\x03\0\0\0\0"]), Err(StateError::UnknownField { tag: 0x301 }));
    assert_eq!(read(&[FLAG, TEXT, skippable]), Ok((true, b"ab".to_vec())));
    assert_eq!(read(&[FLAG, TEXT, skippable, skippable]), Err(StateError::Duplicate { tag: 0x8001 }));
    assert_eq!(read(&[FLAG, TEXT, &skippable[..6]]), Err(StateError::Trailing { bytes: 6 }));
    assert_eq!(read(&[FLAG, skippable, TEXT]), Err(StateError::Missing { field: "c" }));
}

#[test]
fn a_field_may_be_optional_or_newer_than_the_state() {
    let read = |version, payload: &[u8]| {
        let saved = SavedState::new(KIND, version, payload);
        let mut fields = Decoder::new(&saved, KIND, 1..=2)?;
        let read =
            (fields.since(2, A, true, Decoder::bool)?, fields.optional(C, |fields, c| fields.bytes(c, 3))?);
        let read = (read.0, read.1.map(<[u8]>::to_vec));
        fields.finish().map(|()| read)
    };
    let both = [FLAG, TEXT].concat();
    assert_eq!(read(2, &both), Ok((true, Some(b"ab".to_vec()))));
    assert_eq!(read(2, FLAG), Ok((true, None)));
    assert_eq!(read(2, TEXT), Err(StateError::Missing { field: "a" }));
    assert_eq!(read(1, TEXT), Ok((true, Some(b"ab".to_vec()))));
    assert_eq!(read(1, &both), Err(StateError::UnknownField { tag: 1 }));
    assert_eq!(read(1, FLAG), Err(StateError::UnknownField { tag: 1 }));
}

#[test]
fn d2_records_are_read_in_full_and_lists_are_bounded() {
    let list = |records: &[&[u8]], max| {
        let records = records.concat();
        let mut fields = Encoder::new(KIND, 2);
        fields.bytes(D, &records);
        let saved = fields.finish();
        let mut fields = Decoder::new(&saved, KIND, 2..=2)?;
        let read = fields.list(D, max, |record| record.bool(A))?;
        fields.finish().map(|()| read)
    };
    let record = [b"\x07\0\0\0", FLAG].concat();
    assert_eq!(list(&[], 0), Ok(Vec::new()));
    assert_eq!(list(&[&record, &record], 2), Ok(vec![true, true]));
    assert_eq!(
        list(&[&record, &record, &record], 2),
        Err(StateError::TooLong { field: "d", len: 3, max: 2 })
    );
    assert_eq!(list(&[b"\0\0\0\0"], 2), Err(StateError::Missing { field: "a" }));
    for len in 1..record.len() {
        assert_eq!(list(&[&record[..len]], 2), Err(StateError::Truncated { field: "d" }));
    }
    let with = |more: &[u8]| list(&[&[7 + more.len() as u8, 0, 0, 0], FLAG, more], 2);
    assert_eq!(with(UNKNOWN[0]), Err(StateError::UnknownField { tag: 2 }));
    assert_eq!(with(UNKNOWN[1]), Ok(vec![true]));
    assert_eq!(with(b"x"), Err(StateError::Trailing { bytes: 1 }));
    let nested = |bytes: &[u8]| {
        let mut fields = Encoder::new(KIND, 2);
        fields.bytes(D, bytes);
        let saved = fields.finish();
        Decoder::new(&saved, KIND, 2..=2).unwrap().nested(D, |record| record.bool(A))
    };
    assert_eq!(nested(FLAG), Ok(true));
    assert_eq!(nested(&[FLAG, UNKNOWN[0]].concat()), Err(StateError::UnknownField { tag: 2 }));
}

#[test]
fn descriptors_travel_beside_the_bytes_and_are_taken_once() {
    let event = || std::os::fd::OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let (first, second) = (event(), event());
    let numbers = [first.as_raw_fd(), second.as_raw_fd()];
    let borrowed = SavedState::new(KIND, 1, &b"x"[..]);
    let mut handover = Handover::new(borrowed.clone().into_owned())
        .with_descriptor("first", first)
        .with_descriptor("second", second);
    assert_eq!(handover.state, borrowed);
    assert!(handover.descriptor("third").is_none());
    let taken = ["second", "first"].map(|name| handover.descriptor(name).unwrap());
    assert_eq!(taken.map(|fd| fd.as_raw_fd()), [numbers[1], numbers[0]]);
    assert!(handover.descriptor("first").is_none());
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        numbers: (u8, u16, u32, u64, i64, bool),
        array: [u8; 5],
        texts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..4),
    ) {
        let field = |tag| Field::new(tag, "any");
        let mut fields = Encoder::new(KIND, 2);
        fields.u8(field(0), numbers.0).u16(field(1), numbers.1).u32(field(2), numbers.2);
        fields.u64(field(3), numbers.3).i64(field(4), numbers.4).bool(field(5), numbers.5);
        fields.bytes(field(6), &array);
        fields.list(field(7), &texts, |record, text| {
            record.nested(field(9), |nested| {
                nested.bytes(field(8), text);
            });
        });
        let saved = fields.finish();
        let mut fields = Decoder::new(&saved, KIND, 2..=2)?;
        let read = (
            fields.u8(field(0))?,
            fields.u16(field(1))?,
            fields.u32(field(2))?,
            fields.u64(field(3))?,
            fields.i64(field(4))?,
            fields.bool(field(5))?,
        );
        prop_assert_eq!(read, numbers);
        prop_assert_eq!(fields.array(field(6))?, array);
        let read = fields.list(field(7), 4, |record| {
            record.nested(field(9), |nested| nested.bytes(field(8), 40).map(<[u8]>::to_vec))
        })?;
        prop_assert_eq!(read, texts);
        prop_assert_eq!(fields.finish(), Ok(()));
    }

    /// Whatever the bytes are, they are answered, and what is taken is what they say.
    #[test]
    fn d2_any_bytes_are_answered(bytes in prop::collection::vec(prop_oneof![4 => 0u8..4, 1 => any::<u8>()], 0..60)) {
        let saved = state(&bytes);
        let mut fields = Decoder::new(&saved, KIND, 2..=2)?;
        let mut read = || {
            let flag = fields.optional(A, Decoder::bool)?;
            let list = fields.list(B, 4, |record| record.u8(A))?;
            Ok::<_, StateError>((flag, list))
        };
        let Ok((flag, list)) = read() else { return Ok(()) };
        if fields.finish().is_ok() && bytes.iter().all(|byte| *byte < 0x80) {
            let mut again = Encoder::new(KIND, 2);
            if let Some(flag) = flag {
                again.bool(A, flag);
            }
            again.list(B, list, |record, value| {
                record.u8(A, value);
            });
            prop_assert_eq!(again.finish(), saved);
        }
    }
}
