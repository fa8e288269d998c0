use proptest::prelude::*;

use super::*;

const KIND: &str = "test";

fn state(payload: &[u8]) -> SavedState<'_> {
    SavedState { kind: KIND, version: 2, payload: payload.into() }
}

#[test]
fn every_field_has_its_place_and_its_order() {
    let mut fields = Encoder::new(KIND, 2);
    fields.u8(1).u16(0x302).u32(0x706_0504).u64(8).i64(-2).bool(true).array(b"xy").bytes(b"abc");
    let saved = fields.finish();
    let mut payload = vec![1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0xfe];
    payload.extend([0xff; 7]);
    payload.extend(b"\x01xy\x03\0\0\0abc");
    assert_eq!(saved, state(&payload));
}

#[test]
fn another_kind_and_another_version_are_refused() {
    let refused = Decoder::new(&state(b""), "other", 2).unwrap_err();
    assert_eq!(refused, StateError::Kind { expected: "other", found: KIND.into() });
    for version in [0, 1, 3, u16::MAX] {
        let refused = Decoder::new(&state(b""), KIND, version).unwrap_err();
        assert_eq!(refused, StateError::Version { kind: KIND, found: 2, known: version });
    }
}

#[test]
fn what_is_short_long_or_left_over_is_refused_by_its_name() {
    let read = |payload: &[u8]| {
        let saved = state(payload);
        let mut fields = Decoder::new(&saved, KIND, 2)?;
        let read = (fields.bool("flag")?, fields.bytes("text", 3)?.to_vec());
        fields.finish().map(|()| read)
    };
    assert_eq!(read(b"\x01\x02\0\0\0ab"), Ok((true, b"ab".to_vec())));
    assert_eq!(read(b""), Err(StateError::Truncated { field: "flag" }));
    assert_eq!(read(b"\x02\0\0\0\0"), Err(StateError::Value { field: "flag", value: 2 }));
    assert_eq!(read(b"\x01\x02\0\0"), Err(StateError::Truncated { field: "text" }));
    assert_eq!(read(b"\x01\x03\0\0\0ab"), Err(StateError::Truncated { field: "text" }));
    assert_eq!(read(b"\x01\x04\0\0\0abcd"), Err(StateError::TooLong { field: "text", len: 4, max: 3 }));
    let endless = StateError::TooLong { field: "text", len: u32::MAX as usize, max: 3 };
    assert_eq!(read(b"\x01\xff\xff\xff\xffab"), Err(endless));
    assert_eq!(read(b"\x01\x01\0\0\0abc"), Err(StateError::Trailing { bytes: 2 }));
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        numbers: (u8, u16, u32, u64, i64, bool),
        array: [u8; 5],
        text in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut fields = Encoder::new(KIND, 2);
        fields.u8(numbers.0).u16(numbers.1).u32(numbers.2).u64(numbers.3).i64(numbers.4).bool(numbers.5);
        fields.array(&array).bytes(&text);
        let saved = fields.finish();
        let mut fields = Decoder::new(&saved, KIND, 2)?;
        let read = (
            fields.u8("a")?,
            fields.u16("b")?,
            fields.u32("c")?,
            fields.u64("d")?,
            fields.i64("e")?,
            fields.bool("f")?,
        );
        prop_assert_eq!(read, numbers);
        prop_assert_eq!(fields.array("g")?, array);
        prop_assert_eq!(fields.bytes("h", 40)?, &text);
        prop_assert_eq!(fields.finish(), Ok(()));
    }
}
