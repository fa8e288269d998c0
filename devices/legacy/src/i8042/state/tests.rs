use ossature_bus::{Device, Effect, Handover};

use super::*;
use crate::I8042;
use crate::testing::Attachment;
use crate::testing::state::{d2_mutations, round_trip};

const DATA: usize = 0;
const COMMAND: usize = 1;

fn make() -> I8042 {
    I8042::new("i8042")
}

fn write(machine: &Attachment, port: usize, value: u8) {
    assert_eq!(machine.write(port, 0, value), Effect::None);
}

/// How many bytes the guest reads until none comes.
fn drained(machine: &Attachment) -> usize {
    let mut bytes = 0;
    while machine.read(COMMAND, 0) & 1 != 0 {
        machine.read(DATA, 0);
        bytes += 1;
        assert!(bytes < 1000, "no end");
    }
    bytes
}

/// A state in which every field says something.
fn busy() -> ControllerState {
    let keyboard = KeyboardState { scanning: true, set: 2, command: 0xf0, last: 0xfa, out: vec![0xab, 0x83] };
    let outputs = vec![[0xfa, 0], [0xfe, 0x60]];
    ControllerState { config: 0x65, commanded: true, command: 0xd4, outputs, last: 0x55, keyboard }
}

/// A guest reads until nothing comes; then self-test and keys work.
fn obeys(device: &mut I8042, machine: &Attachment) {
    write(machine, COMMAND, 0xae);
    let bytes = drained(machine);
    assert!(bytes <= ANSWER_CAPACITY + 1 + KEYBOARD_CAPACITY, "{bytes}");
    write(machine, COMMAND, 0xaa);
    assert_eq!(machine.read(DATA, 0), 0x55);
    write(machine, COMMAND, 0x60);
    write(machine, DATA, 0x45);
    write(machine, DATA, 0xff);
    // The answer to the reset, behind that to a parameter that it may have been taken for.
    let bytes = drained(machine);
    assert!((1..=2).contains(&bytes));
    write(machine, DATA, 0xf4);
    assert_eq!(machine.read(DATA, 0), 0xfa);
    machine.interrupts();
    assert!(device.keyboard().press_ctrl_alt_del());
    assert_eq!(machine.interrupts(), 1);
}

#[test]
fn a_guest_cannot_tell_the_restored_controller_from_the_saved_one() {
    round_trip(make, |device, _| {
        device.keyboard().press_ctrl_alt_del();
    });
}

#[test]
fn d2_fields_are_refused_or_taken() {
    d2_mutations(make, &busy().save(), obeys);
}

#[test]
fn d2_fields_that_contradict_each_other_are_refused() {
    let refused = |change: fn(&mut ControllerState)| {
        let mut state = busy();
        change(&mut state);
        make().restore(Handover::new(state.save())).unwrap_err()
    };
    let inconsistent = |change, name| {
        let refused = refused(change);
        assert!(matches!(refused, StateError::Inconsistent { field, .. } if field == name), "{refused}");
    };
    inconsistent(|state| state.outputs.clear(), "keyboard.out");
    let value = |change, name, found| {
        assert_eq!(refused(change), StateError::Value { field: name, value: found });
    };
    value(|state| state.outputs[0][1] = 0x20, "outputs", 0x20);
    value(|state| state.command = 0xd5, "command", 0xd5);
    value(|state| state.keyboard.command = 0xf3, "keyboard.command", 0xf3);
    value(|state| state.keyboard.set = 3, "keyboard.set", 3);
    let too_long = |change, name| {
        let refused = refused(change);
        assert!(matches!(refused, StateError::TooLong { field, .. } if field == name), "{refused}");
    };
    too_long(|state| state.outputs = vec![[0; 2]; ANSWER_CAPACITY + 2], "outputs");
    too_long(|state| state.keyboard.out = vec![0; KEYBOARD_CAPACITY + 1], "keyboard.out");

    // With the keyboard off, its bytes wait for it to be on.
    let mut state = busy();
    state.config |= 0x10;
    state.outputs.clear();
    make().restore(Handover::new(state.save())).unwrap();
}

#[test]
fn half_an_output_is_refused() {
    let mut fields = Encoder::new(KIND, VERSION);
    fields.u8(CONFIG, 0).bool(COMMANDED, false).u8(super::COMMAND, 0).bytes(OUTPUTS, &[1, 0, 2]);
    let refused = make().restore(Handover::new(fields.finish())).unwrap_err();
    assert!(matches!(refused, StateError::Inconsistent { field: "outputs", .. }), "{refused}");
}
