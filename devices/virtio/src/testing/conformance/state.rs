//! Rows about saving, restoring, and moving between machines.

use std::borrow::Cow;

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{Device, DeviceState, Handover};

use super::{Factory, eager, probe, works};
use crate::testing::{TestDriver, Transport};

/// In the middle of I/O the device is saved and another one goes on from there: each chain comes back exactly once, and
/// no kick or interrupt is lost, with and without EVENT_IDX (row A18).
pub fn save_and_restore_mid_io(factory: Factory) {
    let eager = eager(factory);
    for wanted in [0, u128::MAX] {
        let mut driver = TestDriver::boxed(factory());
        driver.start(wanted);
        works(&mut driver, &eager);
        for round in 0..6 {
            for &queue in &eager {
                // Served, and not yet looked at; then kicked, and nobody took the turn; then not even kicked.
                let next = driver.ring(queue).next_used();
                driver.ring(queue).set_used_event(next);
                (0..3).for_each(|_| probe(&mut driver, queue));
                driver.kick(queue);
                (0..2).for_each(|_| probe(&mut driver, queue));
                if round % 2 == 0 {
                    driver.doorbell(queue).signal().unwrap();
                }
                driver.ring(queue).set_used_event(next.wrapping_add(4));
            }
            driver.interrupts();
            let pending = driver.registers().pending();
            assert!(pending != 0 || eager.is_empty() || driver.transport() != Transport::Mmio);
            if !driver.move_to(factory()) {
                return;
            }
            assert_eq!(driver.registers().pending() & pending, pending);
            if pending != 0 {
                assert!(driver.interrupts() > 0, "what was pending is not raised again");
            }
            driver.pump();
            for &queue in &eager {
                assert!(driver.interrupts() > 0 || queue != eager[0], "an interrupt is lost");
                assert_eq!(std::iter::from_fn(|| driver.used(queue)).count(), 5);
            }
            driver.acknowledge();
            works(&mut driver, &eager);
        }
        assert_eq!(driver.reports(), []);
    }
}

/// A device that left its machine works in the next one.
pub fn detached_and_attached_again(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    for wanted in [0, u128::MAX, 0] {
        driver.start(wanted);
        works(&mut driver, &eager);
        let (old, status) = driver.registers().status_register();
        driver.attach_again();
        assert_eq!(driver.status(), 0);
        // The machine that it left cannot reach it any more.
        driver.start(wanted);
        let _ = old.write(status, 0).unwrap();
        works(&mut driver, &eager);
    }
    assert_eq!(driver.reports(), []);
}

fn saved(device: &mut dyn Device) -> Option<SavedState<'static>> {
    match device.save().unwrap() {
        DeviceState::Saved(Handover { state, .. }) => Some(state),
        _ => None,
    }
}

/// Returns true if `now` is `before` with some bits of one field of 8 bytes cleared.
fn only_cleared(before: &[u8], now: &[u8]) -> bool {
    let differ = |(before, now): &(&u8, &u8)| before != now;
    let first = before.iter().zip(now).position(|pair| differ(&pair)).unwrap_or(0);
    before.len() == now.len()
        && before.iter().zip(now).all(|(before, now)| now & !before == 0)
        && !before.iter().zip(now).skip(first + 8).any(|pair| differ(&pair))
}

/// Where two payloads differ.
fn difference(left: &[u8], right: &[u8]) -> String {
    let at = left.iter().zip(right).position(|(left, right)| left != right);
    let around = |bytes: &[u8], at: usize| bytes[at.saturating_sub(16)..bytes.len().min(at + 16)].to_vec();
    at.map_or_else(
        || format!("{} and {} bytes", left.len(), right.len()),
        |at| format!("from {at} on, around there: {:?} and {:?}", around(left, at), around(right, at)),
    )
}

/// Each field of a saved device set to 0, 1, its maximum and its neighbours, whatever its width, and the payload cut at
/// each length: the device refuses it and is as it was, or becomes exactly what it says, and goes on somehow.
pub fn d2_mutated_states(factory: Factory) {
    let eager = eager(factory);
    let mut driver = TestDriver::boxed(factory());
    driver.start(u128::MAX);
    works(&mut driver, &eager);
    driver.acknowledge();
    driver.device().quiesce().unwrap();
    let Some(state) = saved(driver.device()) else { return };
    let (mut refused, mut taken) = (0, 0);
    let mut try_it = |payload: Vec<u8>| {
        // What a machine would have told its guest by now.
        driver.registers().events().iter().for_each(|event| _ = event.take().unwrap());
        let changed = SavedState::new(state.kind.clone(), state.version, Cow::Owned(payload));
        let before = saved(driver.device()).unwrap();
        match driver.device().restore(Handover::new(changed.clone())) {
            Err(_) => {
                let after = saved(driver.device()).unwrap();
                let difference = || difference(&before.payload, &after.payload);
                assert!(after == before, "a refused state has changed the device: {}", difference());
                refused += 1;
            }
            Ok(()) => {
                let became = saved(driver.device()).unwrap();
                // On PCI, what is pending on a vector that is not masked is sent at once.
                let sent =
                    driver.transport() == Transport::Pci && only_cleared(&changed.payload, &became.payload);
                assert!(became == changed || sent, "{}", difference(&became.payload, &changed.payload));
                driver.device().resume().unwrap();
                driver.pump();
                driver.device().quiesce().unwrap();
                let again = saved(driver.device()).unwrap();
                assert_eq!(driver.device().restore(Handover::new(again)), Ok(()));
                taken += 1;
            }
        }
    };
    // Of a long state, each width has its share of places.
    let step = state.payload.len().div_ceil(512);
    for (first, width) in [1, 2, 4, 8].into_iter().enumerate() {
        for at in (first % step..=state.payload.len().saturating_sub(width)).step_by(step) {
            let mut bytes = [0; 8];
            bytes[..width].copy_from_slice(&state.payload[at..at + width]);
            let value = u64::from_le_bytes(bytes);
            for value in [0, 1, u64::MAX, value.wrapping_sub(1), value.wrapping_add(1)] {
                let mut payload = state.payload.to_vec();
                payload[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
                if payload != *state.payload {
                    try_it(payload);
                }
            }
        }
    }
    for len in (0..state.payload.len()).step_by(step) {
        try_it(state.payload[..len].to_vec());
    }
    assert!(refused > 0 && taken > 0, "no field is checked, or none is free");
    let other = SavedState::new("another", state.version, state.payload.clone());
    let refusal = driver.device().restore(Handover::new(other));
    assert!(matches!(refusal, Err(StateError::Kind { .. })), "{refusal:?}");
    driver.device().restore(Handover::new(state)).unwrap();
    driver.device().resume().unwrap();
    driver.start(0);
    works(&mut driver, &eager);
}
