//! What is saved is restored, and nothing else is taken over.

use ossature_bus::state::{SavedState, StateError};
use ossature_bus::{DeviceState, Handover, MsiMessage};

use super::*;

/// A function that a guest has set up: BARs, MSI-X with a vector that is open and one that is pending.
fn used(host: &Host) -> Plugged {
    let sample = Plugged::new(host, sample(70));
    sample.write(host, BAR0 + 4, Size::B4, HIGH >> 32);
    sample.write(host, BAR0 + 12, Size::B4, LOW);
    sample.write(host, COMMAND, Size::B2, 6);
    sample.set_table(0, 0xfee0_0000);
    sample.set_table(8, 0x31);
    sample.set_table(12, 0);
    sample.set_control(host, 1 << 15);
    sample.vectors.as_ref().unwrap().interrupt(69).unwrap().signal().unwrap();
    sample
}

fn restored(host: &Host, state: &SavedState<'_>) -> Result<Plugged, StateError> {
    let mut sample = Plugged::try_new("sample", host, None, sample(70)).unwrap();
    sample.function.restore(sample.function.check(state)?);
    sample.board.registers().iter().for_each(|range| range.moved(range.wanted()));
    sample.function.resume().unwrap();
    Ok(sample)
}

#[test]
fn a_function_goes_on_where_it_was_saved() {
    let state = used(&Host::started()).function.save().unwrap();
    let host = Host::started();
    let sample = restored(&host, &state).unwrap();
    assert_eq!(host.interrupts(), 0, "it is no news to the guest");
    assert_eq!((sample.base(0), sample.base(1)), (Some(HIGH), Some(LOW)));
    assert_eq!(sample.read(&host, COMMAND, Size::B2), 6);
    assert_eq!(sample.board.take_message("msix", 0), None);
    sample.vectors.as_ref().unwrap().interrupt(0).unwrap().signal().unwrap();
    assert_eq!(
        sample.board.take_message("msix", 0),
        Some(MsiMessage::new(0xfee0_0000, 0x31).from_requester(8))
    );
    let pending = sample.bar0().read(Access { offset: 0x1008, size: Size::B8 });
    assert_eq!(pending, Ok(1 << 5));
    sample.set_table(16 * 69 + 12, 0);
    assert!(sample.board.take_message("msix", 69).is_some(), "what was pending is sent");
    // It saves the same again.
    let state = used(&Host::started()).function.save().unwrap();
    assert_eq!(restored(&Host::started(), &state).unwrap().function.save().unwrap(), state);
}

#[test]
fn b7_a_bar_that_was_refused_its_place_is_restored_where_it_is() {
    let host = Host::started();
    let sample = used(&host);
    // A machine that has something else there.
    let _ = host.write(1, BAR0 + 12, Size::B4, LOW + 0x8000);
    let refused = sample.board.registers()[1].clone();
    assert_eq!(refused.wanted(), Some(LOW + 0x8000));
    refused.served(refused.wanted());
    let state = sample.function.save().unwrap();
    let host = Host::started();
    let sample = restored(&host, &state).unwrap();
    assert_eq!((sample.base(0), sample.base(1)), (Some(HIGH), Some(LOW)));
    assert_eq!(sample.read(&host, BAR0 + 12, Size::B4), LOW + 0x8000);
    assert_eq!(sample.function.save().unwrap(), state);
    // D2: places that no machine has.
    for (at, value) in [(1, 8), (3, 0xff), (7, 1)] {
        let mut payload = state.payload.to_vec();
        let last = payload.len() - 8;
        payload[last + at] = value;
        let changed = SavedState::new(state.kind.clone(), state.version, payload);
        assert!(sample.function.check(&changed).is_err(), "{at}");
    }
    // The next move goes where the guest says.
    sample.write(&host, BAR0 + 12, Size::B4, LOW + 0x1_0000);
    assert_eq!(sample.base(1), Some(LOW + 0x1_0000));
}

#[test]
fn one_that_was_ejected_stays_away() {
    let host = Host::started();
    let sample = used(&host);
    let _ = host.eject(2);
    let state = sample.function.save().unwrap();
    let host = Host::started();
    let sample = restored(&host, &state).unwrap();
    assert_eq!(host.read(1, 0, Size::B4), 0xffff_ffff);
    assert_eq!((sample.base(0), sample.base(1)), (None, None));
}

#[test]
fn d2_a_state_with_any_byte_changed_is_refused_or_as_good() {
    let state = used(&Host::started()).function.save().unwrap();
    let host = Host::started();
    let sample = used(&host);
    let check = |payload: Vec<u8>| {
        sample.function.check(&SavedState::new(state.kind.clone(), state.version, payload)).map(drop)
    };
    for at in 0..state.payload.len() {
        for value in [0, 1, 0x7f, 0x80, 0xff] {
            let mut payload = state.payload.to_vec();
            payload[at] = value;
            let _ = check(payload);
        }
        assert!(check(state.payload[..at].to_vec()).is_err(), "cut at {at}");
    }
    // Each read-only byte of configuration space.
    for at in [0, 2, 8, 9, 0x2c, 0x34, 0x40, 0x44] {
        let mut payload = state.payload.to_vec();
        payload[7 + 6 + at] ^= 1;
        let refused = check(payload);
        let field = "configuration space";
        assert!(
            matches!(refused, Err(StateError::Inconsistent { field: found, .. }) if found == field),
            "{at:#x}"
        );
    }
    let other = SavedState::new("org.example", 1, state.payload.clone());
    assert!(matches!(sample.function.check(&other), Err(StateError::Kind { .. })));
    let later = SavedState::new(state.kind.clone(), 2, state.payload.clone());
    assert!(matches!(sample.function.check(&later), Err(StateError::Version { .. })));
}

#[test]
fn d2_a_state_of_another_function_is_refused() {
    let host = Host::started();
    let state = used(&host).function.save().unwrap();
    let host = Host::started();
    let elsewhere = Plugged::try_new("sample", &host, Some(5), sample(70)).unwrap();
    let refused = elsewhere.function.check(&state).map(drop);
    assert!(matches!(refused, Err(StateError::Inconsistent { field: "slot", .. })), "{refused:?}");
    let smaller = Plugged::try_new("sample2", &host, Some(1), sample(69)).unwrap();
    assert!(smaller.function.check(&state).is_err());
    let unlike = info().bar(Bar::memory64(0, 0x10000)).bar(Bar::memory32(3, 0x1000));
    drop(smaller);
    let unlike = Plugged::try_new("sample2", &host, Some(1), unlike).unwrap();
    assert!(unlike.function.check(&state).is_err());
}

fn save(host: &mut Host) -> Handover<'static> {
    match host.device.save().unwrap() {
        DeviceState::Saved(handover) => handover,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_host_goes_on_with_its_address_and_its_news() {
    let mut host = Host::started();
    let sample = Plugged::new(&host, sample(1));
    let mut gone = Plugged::try_new("gone", &host, None, info()).unwrap();
    gone.function.resume().unwrap();
    gone.function.detach().unwrap();
    let _ = host.port("config").write(Access { offset: 0, size: Size::B4 }, 0x8000_0804).unwrap();
    let handover = save(&mut host);
    drop(sample);

    let mut host = Host::new();
    let refused = host.device.restore(Handover::new(handover.state.borrowed().into_owned()));
    assert!(matches!(refused, Err(StateError::Inconsistent { .. })), "there is no such function");
    let _sample = Plugged::try_new("sample", &host, None, super::sample(1)).unwrap();
    host.device.restore(handover).unwrap();
    assert_eq!(host.interrupts(), 0);
    host.device.resume().unwrap();
    assert_eq!((host.interrupts(), host.hotplug(0), host.hotplug(4)), (1, 2, 4));
    let address = host.port("config").read(Access { offset: 0, size: Size::B4 });
    assert_eq!(address, Ok(0x8000_0804));
    assert!(Plugged::try_new("next", &host, Some(2), info()).is_err(), "it has not been ejected");
}

#[test]
fn a_function_that_comes_between_restore_and_resume_is_news_to_the_guest() {
    let handover = save(&mut Host::started());
    let mut host = Host::new();
    host.device.restore(handover).unwrap();
    let mut late = Plugged::try_new("late", &host, None, info()).unwrap();
    host.device.resume().unwrap();
    late.function.resume().unwrap();
    assert_eq!((host.interrupts(), host.hotplug(0)), (1, 2));
}

#[test]
fn d2_a_host_refuses_what_it_never_saves() {
    let mut host = Host::started();
    let state = save(&mut host).state;
    for at in 0..state.payload.len() {
        for value in [1, 0x80, 0xff] {
            let mut payload = state.payload.to_vec();
            payload[at] = value;
            let changed = SavedState::new(state.kind.clone(), state.version, payload);
            // Only bits of the address that a guest can write, and slots that wait to be ejected, are any good.
            let _ = host.device.restore(Handover::new(changed));
            let again = save(&mut host).state;
            let mut different =
                again.payload.iter().zip(state.payload.iter()).enumerate().filter(|(_, (a, b))| a != b);
            assert!(
                different.all(|(at, _)| (6..10).contains(&at) || (36..40).contains(&at)),
                "{at} {value:#x}"
            );
            host.device.reset().unwrap();
        }
        let cut = SavedState::new(state.kind.clone(), state.version, state.payload[..at].to_vec());
        assert!(host.device.restore(Handover::new(cut)).is_err());
    }
}

/// The bytes of a golden file: two hexadecimal digits each, and `#` before what is for the reader.
fn golden(text: &str) -> Vec<u8> {
    let digits = text.lines().flat_map(|line| line.split('#').next().unwrap().split_whitespace());
    digits.map(|byte| u8::from_str_radix(byte, 16).unwrap()).collect()
}

fn hex(bytes: &[u8]) -> String {
    let line = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x} ")).collect::<String>();
    bytes.chunks(16).map(|bytes| line(bytes).trim_end().to_owned() + "\n").collect()
}

const GOLDEN_FUNCTION: &str = include_str!("../../tests/golden/pci-function-1.hex");
const GOLDEN_HOST: &str = include_str!("../../tests/golden/pci-host-1.hex");

#[test]
fn the_payloads_are_the_golden_ones_and_are_restored() {
    let mut host = Host::started();
    let mut device = Plugged::new(&host, sample(2));
    device.write(&host, BAR0 + 12, Size::B4, LOW);
    device.write(&host, COMMAND, Size::B2, 6);
    device.set_table(0, 0xfee0_0000);
    device.set_table(8, 0x31);
    device.set_table(12, 0);
    device.set_control(&host, 1 << 15);
    device.vectors.as_ref().unwrap().interrupt(1).unwrap().signal().unwrap();
    let _ = host.port("config").write(Access { offset: 0, size: Size::B4 }, 0x8000_0804).unwrap();
    let payload = device.function.save().unwrap().payload;
    assert!(payload[..] == golden(GOLDEN_FUNCTION), "the bytes have changed:\n{}", hex(&payload));
    let payload = save(&mut host).state.payload;
    assert!(payload[..] == golden(GOLDEN_HOST), "the bytes have changed:\n{}", hex(&payload));

    device.function.reset().unwrap();
    let state = SavedState::new("ossature.pci-function", 1, golden(GOLDEN_FUNCTION));
    device.function.restore(device.function.check(&state).unwrap());
    assert_eq!(device.function.save().unwrap(), state);
    host.device.reset().unwrap();
    let state = SavedState::new("ossature.pci-host", 1, golden(GOLDEN_HOST));
    host.device.restore(Handover::new(state.clone())).unwrap();
    assert_eq!(save(&mut host).state, state);
}
