use super::*;

const KIND: &str = "its";

/// What is wrong with a state.
type Change = fn(&mut ItsState);

/// As Linux leaves it with a message or two.
fn sample() -> ItsState {
    let mut base = [0; BASERS];
    base[0] = 0x8107_0000_4a10_0303;
    base[1] = 0x8407_0000_4a20_0300;
    ItsState {
        control: ENABLED | IDLE,
        implementation: 0x4b00_043b,
        queue: 0xb800_0000_4a30_040f,
        written: 0x1e0,
        read: 0x1e0,
        base,
    }
}

/// What is read again of it.
fn again(state: &ItsState) -> Result<ItsState, StateError> {
    let mut fields = Encoder::new(KIND, 1);
    state.encode(&mut fields);
    let saved = fields.finish();
    let mut fields = Decoder::new(&saved, KIND, 1..=1)?;
    let read = ItsState::decode(&mut fields)?;
    fields.finish()?;
    Ok(read)
}

#[test]
fn what_is_written_is_read_again() {
    assert_eq!(again(&sample()), Ok(sample()));
    // One that no guest has touched.
    let new = ItsState {
        control: IDLE,
        queue: 0,
        written: 0,
        read: 0,
        base: [0x0107_0000_0000_0000; 8],
        ..sample()
    };
    assert_eq!(again(&new), Ok(new));
}

#[test]
fn d1_an_its_that_cannot_be_is_refused_by_name() {
    let refused = |change: Change| {
        let mut state = sample();
        change(&mut state);
        again(&state).unwrap_err().to_string()
    };
    let cases: [(Change, &str); 8] = [
        (|state| state.control |= 2, "ITS control"),
        (|state| state.implementation |= 1 << 32, "ITS implementation"),
        (|state| state.written = 0x1_0000, "ITS commands written"),
        (|state| state.written = 0x1e8, "ITS commands written"),
        (|state| state.read = u64::MAX, "ITS commands read"),
        (|state| state.queue &= !VALID, "ITS control"),
        (|state| state.base[0] = 0, "ITS control"),
        (|state| state.base[1] = state.base[0], "ITS control"),
    ];
    for (n, (change, field)) in cases.into_iter().enumerate() {
        let said = refused(change);
        assert!(said.contains(field), "case {n}: {said}");
    }
    // Without its tables it may be as long as it is not enabled.
    let off = ItsState { control: 0, base: [0; BASERS], ..sample() };
    assert_eq!(again(&off), Ok(off));
}
