//! Tests that every device passes that can be saved.

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Access, Device, DeviceState, Handover, Size};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::{Attachment, attach, attach_quiet};

/// The state of a device that can be saved.
pub(crate) fn saved(device: &mut dyn Device) -> SavedState<'static> {
    match device.save().unwrap() {
        DeviceState::Saved(handover) => handover.state,
        other => panic!("{other:?}"),
    }
}

/// One access, and how it was answered.
fn access(machine: &Attachment, (port, offset, write): (u8, u64, Option<u8>)) -> String {
    let port = &machine.ports[usize::from(port) % machine.ports.len()];
    let at = Access { offset, size: Size::B1 };
    match write {
        Some(value) => format!("{:?}", port.write(at, value.into())),
        None => format!("{:?}", port.read(at)),
    }
}

fn interrupts(machine: &Attachment) -> Vec<u64> {
    machine.irqs.iter().map(|irq| irq.take().unwrap()).collect()
}

/// Whatever a guest has done, a device that is restored goes on as the one that was saved does: the guest cannot
/// tell them apart by what it reads or by its interrupts. `host` is the VMM's side: it does one of its things.
pub(crate) fn round_trip<D: Device>(make: impl Fn() -> D, host: impl Fn(&D, u8)) {
    // An access, or with an offset beyond the registers one of the host's doings.
    let step = (0u8..2, 0u64..9, prop::option::of(prop_oneof![any::<u8>(), 0u8..16, 0xd0u8..0xf8]));
    let steps = prop::collection::vec(step, 0..60);
    let mut runner =
        TestRunner::new(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() });
    let outcome = runner.run(&(steps.clone(), steps), |(before, after)| {
        let go = |device: &D, machine: &Attachment, step: (u8, u64, Option<u8>)| match step {
            (_, 8, what) => {
                host(device, what.unwrap_or(0));
                String::new()
            }
            step => access(machine, step),
        };
        let mut first = make();
        let first_machine = attach(&mut first);
        for step in before {
            go(&first, &first_machine, step);
        }
        interrupts(&first_machine);
        first.quiesce().unwrap();
        let state = saved(&mut first);

        let mut second = make();
        let second_machine = attach_quiet(&mut second);
        second.restore(Handover::new(state.clone())).unwrap();
        prop_assert_eq!(&saved(&mut second), &state);
        first.resume().unwrap();
        second.resume().unwrap();
        for step in after {
            prop_assert_eq!(go(&first, &first_machine, step), go(&second, &second_machine, step));
            prop_assert_eq!(interrupts(&first_machine), interrupts(&second_machine));
        }
        prop_assert_eq!(saved(&mut first), saved(&mut second));
        Ok(())
    });
    outcome.unwrap();
}

/// Each field of `state` set to 0, 1, its maximum and its neighbours, whatever its width, and the payload cut at each
/// length and made longer: the device refuses it and is as it was, or becomes exactly what it says, and then passes
/// `check`.
pub(crate) fn d2_mutations<D: Device>(
    make: impl Fn() -> D,
    state: &SavedState<'static>,
    check: impl Fn(&mut D, &Attachment),
) {
    // Returns true if the device takes it.
    let takes = |payload: Vec<u8>| {
        let changed = SavedState::new(state.kind.clone(), state.version, payload);
        let mut device = make();
        let machine = attach_quiet(&mut device);
        let before = saved(&mut device);
        match device.restore(Handover::new(changed.clone())) {
            Err(_) => {
                assert_eq!(saved(&mut device), before, "a refused state has changed the device");
                false
            }
            Ok(()) => {
                assert_eq!(saved(&mut device), changed);
                device.resume().unwrap();
                check(&mut device, &machine);
                device.quiesce().unwrap();
                let again = saved(&mut device);
                assert_eq!(
                    device.restore(Handover::new(again)),
                    Ok(()),
                    "what the device became cannot be restored"
                );
                true
            }
        }
    };
    let (mut refused, mut taken) = (0, 0);
    for width in [1, 2, 4, 8] {
        for at in 0..=state.payload.len().saturating_sub(width) {
            let mut bytes = [0; 8];
            bytes[..width].copy_from_slice(&state.payload[at..at + width]);
            let value = u64::from_le_bytes(bytes);
            for value in [0, 1, u64::MAX, value.wrapping_sub(1), value.wrapping_add(1)] {
                let mut payload = state.payload.to_vec();
                payload[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                *(if takes(payload) { &mut taken } else { &mut refused }) += 1;
            }
        }
    }
    assert!(refused > 0 && taken > 0, "no field is checked, or none is free");
    for len in 0..state.payload.len() {
        assert!(!takes(state.payload[..len].to_vec()), "cut to {len}");
    }
    assert!(!takes([&state.payload[..], &[0]].concat()), "a byte too long");

    let mut device = make();
    for version in [0, state.version + 1, u16::MAX] {
        let state = SavedState::new(state.kind.clone(), version, state.payload.to_vec());
        let refused = device.restore(Handover::new(state)).unwrap_err();
        assert!(matches!(refused, StateError::Version { found, .. } if found == version), "{refused:?}");
    }
    let state = SavedState::new("another", state.version, state.payload.to_vec());
    let refused = device.restore(Handover::new(state)).unwrap_err();
    assert!(matches!(refused, StateError::Kind { .. }), "{refused:?}");
}
