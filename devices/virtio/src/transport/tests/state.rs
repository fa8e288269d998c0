//! What a transport saves, and what it refuses.

use std::borrow::Cow;

use ossature_bus::state::SavedState;

use super::*;

/// Tags of the fields: see `transport/state.rs`.
const STATUS: u16 = 7;
const INTERRUPT: u16 = 10;

fn saved(driver: &mut TestDriver) -> SavedState<'static> {
    driver.save().unwrap().state
}

/// The bytes of the field `tag`.
fn field(payload: &mut [u8], tag: u16) -> &mut [u8] {
    let mut at = 0;
    loop {
        let here = u16::from_le_bytes(payload[at..at + 2].try_into().unwrap());
        let len = u32::from_le_bytes(payload[at + 2..at + 6].try_into().unwrap()) as usize;
        if here == tag {
            return &mut payload[at + 6..at + 6 + len];
        }
        at += 6 + len;
    }
}

fn with(state: &SavedState<'static>, change: impl FnOnce(&mut [u8])) -> Handover<'static> {
    let mut payload = state.payload.to_vec();
    change(&mut payload);
    Handover::new(SavedState::new(state.kind.clone(), state.version, Cow::Owned(payload)))
}

#[test]
fn d1_a_status_that_does_not_fit_its_queues_is_refused() {
    let (_, mut driver) = sample();
    driver.start(0);
    let state = saved(&mut driver);
    for status in 0..=255u8 {
        let result = driver.device().restore(with(&state, |payload| field(payload, STATUS)[0] = status));
        // All queues are ready: features were negotiated.
        let fits = [11, 15].contains(&(status & !(NEEDS_RESET | FAILED)));
        assert_eq!(result.is_ok(), fits, "{status:#x}: {result:?}");
        if fits {
            assert_eq!(driver.status(), status);
        }
    }
    // Nothing was set up.
    driver.device().reset().unwrap();
    let state = saved(&mut driver);
    for status in 0..=255u8 {
        let result = driver.device().restore(with(&state, |payload| field(payload, STATUS)[0] = status));
        let fits = [0, 1, 3].contains(&(status & !(NEEDS_RESET | FAILED)));
        assert_eq!(result.is_ok(), fits, "{status:#x}: {result:?}");
    }
}

#[test]
fn d1_interrupts_before_the_driver_is_ready_are_refused() {
    let (_, mut driver) = sample();
    driver.negotiate(0);
    let state = saved(&mut driver);
    let restore = |driver: &mut TestDriver, state: &SavedState<'static>, value| {
        driver.device().restore(with(state, |payload| field(payload, INTERRUPT)[0] = value)).is_ok()
    };
    assert_eq!(
        [0, 1, 2, 3, 4].map(|value| restore(&mut driver, &state, value)),
        [true, false, false, false, false]
    );
    driver.device().resume().unwrap();
    driver.start(0);
    let state = saved(&mut driver);
    assert_eq!(
        [0, 1, 2, 3, 4].map(|value| restore(&mut driver, &state, value)),
        [true, true, true, true, false]
    );
}

#[test]
fn another_device_refuses_the_state_by_name() {
    let (_, mut driver) = sample();
    driver.start(0);
    let state = saved(&mut driver);
    let refusal = |device: Box<dyn LocalDevice>| {
        let mut driver = TestDriver::boxed(device);
        driver.device().quiesce().unwrap();
        driver.device().restore(with(&state, |_| ())).unwrap_err().to_string()
    };
    let new = || Sample::new(&Arc::default());
    let text = refusal(Box::new(crate::Rng::new()));
    assert!(text.contains("device type"), "{text}");
    for queues in [vec![256, 64], vec![256, 64, 8], vec![256, 64, 16, 16]] {
        let groups = vec![(0..queues.len() as u16).collect()];
        let text = refusal(Box::new(Sample { queues, groups, ..new() }));
        assert!(text.contains("queues"), "{text}");
    }
    let text =
        refusal(Box::new(crate::Console::new(None, crate::console::ConsoleOutput::writer(std::io::sink()))));
    assert!(text.contains("offered features"), "{text}");
}

#[test]
fn only_a_quiet_device_is_saved_and_restored() {
    let (_, mut driver) = sample();
    driver.start(0);
    let state = saved(&mut driver);
    driver.device().resume().unwrap();
    assert!(driver.device().save().is_err());
    assert!(matches!(
        driver.device().restore(with(&state, |_| ())),
        Err(StateError::Unsupported { reason: "it is not quiet" })
    ));
    assert_eq!(driver.transact(0, &[b"x"], &[4]).0.len, 1);
}

#[test]
fn what_was_pending_is_raised_again_and_nothing_else() {
    for interrupt in [MmioInterrupt::Exact, MmioInterrupt::SharedLine] {
        for pending in [false, true] {
            let mut driver = TestDriver::with_interrupt(Sample::new(&Arc::default()), interrupt);
            driver.start(0);
            driver.pump();
            if pending {
                driver.request(0, &[], &[4]);
                driver.kick(0);
            }
            let handover = driver.save().unwrap();
            driver.device().reset().unwrap();
            assert!(!driver.is_asserted());
            driver.interrupts();
            driver.device().restore(handover).unwrap();
            // Saved again, it is as it was.
            let handover = driver.save().unwrap();
            driver.device().restore(handover).unwrap();
            assert_eq!(driver.interrupts(), 0);
            driver.device().resume().unwrap();
            assert_eq!(driver.interrupts(), u64::from(pending));
            assert_eq!(driver.is_asserted(), pending && interrupt == MmioInterrupt::SharedLine);
            assert_eq!(driver.acknowledge(), u32::from(pending));
            driver.device().quiesce().unwrap();
            driver.device().resume().unwrap();
            assert_eq!(driver.interrupts(), 0);
        }
    }
}

#[test]
fn a_device_that_leaves_does_not_touch_the_registers_of_the_one_in_its_place() {
    let new =
        || VirtioMmio::new("test", Box::new(Sample::new(&Arc::default())), Arc::new(Inline::new().unwrap()));
    let mut old = new();
    let mut board = TestBoard::default();
    let assigned = board.assign(&old.requires());
    old.attach(assigned.clone()).unwrap();
    old.quiesce().unwrap();
    let DeviceState::Saved(handover) = old.save().unwrap() else { panic!("it has a state") };
    let page = assigned.registers("registers").unwrap().page().unwrap().clone();
    let mut new = new();
    new.attach(assigned).unwrap();
    new.restore(handover).unwrap();
    new.resume().unwrap();
    let registers = [reg::VIRTIO_MMIO_STATUS, reg::VIRTIO_MMIO_INTERRUPT_STATUS].map(|at| at as usize);
    for (at, value) in registers.into_iter().zip([15, 1]) {
        page.store(at, value);
    }
    old.detach().unwrap();
    assert_eq!(registers.map(|at| page.load(at)), [15, 1]);
}

#[test]
fn the_same_features_are_offered_after_a_restore_by_a_device_that_has_more() {
    let (_, mut driver) = sample();
    driver.start(0);
    let offered = driver.offered();
    let state = saved(&mut driver);
    // The offer of a device that lacks one of the features.
    let less = offered & !OWN;
    let handover = with(&state, |payload| field(payload, 2).copy_from_slice(&less.to_le_bytes()));
    driver.device().restore(handover).unwrap();
    driver.device().resume().unwrap();
    assert_eq!(driver.offered(), less);
    assert_eq!(driver.transact(0, &[b"x"], &[4]).0.len, 1);
    // And one that offers what this device does not have is refused.
    driver.device().quiesce().unwrap();
    let more = offered | 1 << 127;
    let handover = with(&state, |payload| field(payload, 2).copy_from_slice(&more.to_le_bytes()));
    let text = driver.device().restore(handover).unwrap_err().to_string();
    assert!(text.contains("offered features"), "{text}");
}
