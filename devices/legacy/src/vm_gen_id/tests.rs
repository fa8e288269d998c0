use ossature_bus::Size;
use ossature_bus::state::SavedState;

use super::*;
use crate::testing::state::{d2_mutations, saved};
use crate::testing::{Attachment, attach, attach_quiet, lives_twice, metric, reset_is_complete};

const FIRST: GenerationId =
    GenerationId(*b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff");
const SECOND: GenerationId = GenerationId([0x5a; 16]);

fn device() -> VmGenId {
    VmGenId::new("generation", FIRST)
}

/// The ID as the guest finds it in its page.
fn in_page(machine: &Attachment) -> [u8; 16] {
    let registers = &machine.board.registers()[0];
    let words = [0, 4, 8, 12].map(|offset| registers.page().unwrap().load(offset).to_le_bytes());
    words.concat().try_into().unwrap()
}

fn restore(device: &mut VmGenId, state: &SavedState<'static>) {
    device.restore(Handover::new(state.clone())).unwrap();
}

#[test]
fn random_ids_differ_and_are_uuids_of_version_4() {
    let (one, other) = (GenerationId::random().unwrap(), GenerationId::random().unwrap());
    assert_ne!(one, other);
    assert_eq!((one.0[6] >> 4, one.0[8] >> 6), (4, 2));
}

#[test]
fn the_guest_finds_a_guid_at_the_start_of_a_page() {
    let mut device = device();
    let machine = attach(&mut device);
    let guid = *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff";
    assert_eq!(in_page(&machine), guid);
    assert_eq!(machine.interrupts(), 0, "a guest that starts is told nothing");
    // And so in a machine whose guest cannot read the page itself, in any width.
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        let mut found = Vec::new();
        for offset in (0..16).step_by(size.bytes() as usize) {
            let value = machine.ports[0].read(Access { offset, size }).unwrap();
            found.extend_from_slice(&value.to_le_bytes()[..size.bytes() as usize]);
        }
        assert_eq!(found, guid);
    }
    let read = |offset, size| machine.ports[0].read(Access { offset, size });
    assert_eq!(read(14, Size::B4), Ok(0xffee));
    assert_eq!([read(16, Size::B8), read(4095, Size::B1), read(u64::MAX, Size::B8)], [Ok(0); 3]);
}

#[test]
fn the_guest_cannot_write_it() {
    let mut device = device();
    let machine = attach(&mut device);
    for size in [Size::B1, Size::B2, Size::B4, Size::B8] {
        for offset in 0..24 {
            let written = machine.ports[0].write(Access { offset, size }, size.mask());
            assert_eq!(written, Err(BusFault::ReadOnly));
        }
    }
    assert_eq!(in_page(&machine), FIRST.in_memory());
}

#[test]
fn a_running_guest_is_told_of_each_new_id_after_it_is_there() {
    let mut device = device();
    let (generation, machine) = (device.generation(), attach(&mut device));
    generation.set(SECOND).unwrap();
    assert_eq!((in_page(&machine), generation.get()), (SECOND.in_memory(), SECOND));
    assert_eq!(machine.interrupts(), 1);
    generation.set(FIRST).unwrap();
    assert_eq!(machine.interrupts(), 1);
    assert_eq!(metric(&device, "changes"), 2);
}

#[test]
fn a_paused_guest_is_told_once_when_it_goes_on() {
    let mut device = device();
    let (generation, machine) = (device.generation(), attach(&mut device));
    device.quiesce().unwrap();
    generation.set(GenerationId([1; 16])).unwrap();
    generation.set(SECOND).unwrap();
    assert_eq!((in_page(&machine), machine.interrupts()), (SECOND.in_memory(), 0));
    for told in [1, 0] {
        device.resume().unwrap();
        assert_eq!(machine.interrupts(), told);
        device.quiesce().unwrap();
    }
}

#[test]
fn pauses_and_resets_keep_the_id() {
    let mut device = device();
    let (generation, machine) = (device.generation(), attach(&mut device));
    generation.set(SECOND).unwrap();
    machine.interrupts();
    device.quiesce().unwrap();
    device.reset().unwrap();
    device.resume().unwrap();
    assert_eq!((in_page(&machine), machine.interrupts()), (SECOND.in_memory(), 0));
    // One that starts anew reads the ID without being told.
    device.quiesce().unwrap();
    generation.set(FIRST).unwrap();
    device.reset().unwrap();
    device.resume().unwrap();
    assert_eq!((in_page(&machine), machine.interrupts()), (FIRST.in_memory(), 0));
}

#[test]
fn each_restore_gives_an_id_that_no_other_has_and_tells_the_guest() {
    let mut original = device();
    let _machine = attach(&mut original);
    original.quiesce().unwrap();
    let state = saved(&mut original);
    // Machines built as the first one was.
    let mut seen = vec![FIRST];
    for _ in 0..3 {
        let mut clone = device();
        let machine = attach_quiet(&mut clone);
        restore(&mut clone, &state);
        assert_eq!(machine.interrupts(), 0);
        clone.resume().unwrap();
        assert_eq!(machine.interrupts(), 1);
        let id = clone.generation().get();
        assert_eq!(in_page(&machine), id.in_memory());
        assert!(!seen.contains(&id), "{id:?} twice");
        seen.push(id);
    }
    // The same machine again and again, back to the same moment.
    original.detach().unwrap();
    let machine = attach_quiet(&mut original);
    for _ in 0..3 {
        restore(&mut original, &state);
        original.resume().unwrap();
        assert_eq!(machine.interrupts(), 1);
        let id = original.generation().get();
        assert!(!seen.contains(&id), "{id:?} twice");
        seen.push(id);
        original.quiesce().unwrap();
    }
}

#[test]
fn an_id_that_was_chosen_for_a_clone_is_used_once() {
    let mut original = device();
    let _machine = attach(&mut original);
    original.quiesce().unwrap();
    let state = saved(&mut original);

    let mut clone = VmGenId::new("generation", SECOND);
    let machine = attach_quiet(&mut clone);
    restore(&mut clone, &state);
    clone.resume().unwrap();
    assert_eq!((in_page(&machine), machine.interrupts()), (SECOND.in_memory(), 1));
    clone.quiesce().unwrap();
    restore(&mut clone, &state);
    assert_ne!(in_page(&machine), SECOND.in_memory());

    // Chosen while it is paused, it is for the next one.
    let third = GenerationId([3; 16]);
    clone.generation().set(third).unwrap();
    restore(&mut clone, &state);
    clone.resume().unwrap();
    assert_eq!((in_page(&machine), machine.interrupts()), (third.in_memory(), 1));
}

#[test]
fn a_machine_that_has_moved_keeps_its_id_and_what_is_due() {
    for due in [false, true] {
        let mut original = device();
        let _machine = attach(&mut original);
        original.quiesce().unwrap();
        if due {
            original.generation().set(SECOND).unwrap();
        }
        let state = saved(&mut original);
        let mut moved = VmGenId::new("generation", GenerationId([9; 16])).keep_when_restored();
        let machine = attach_quiet(&mut moved);
        restore(&mut moved, &state);
        assert_eq!(saved(&mut moved), state);
        moved.resume().unwrap();
        let id = if due { SECOND } else { FIRST };
        assert_eq!((in_page(&machine), machine.interrupts()), (id.in_memory(), due.into()));
    }
}

#[test]
fn a_clone_has_an_id_of_its_own_whatever_it_keeps() {
    let mut original = device();
    let _machine = attach(&mut original);
    original.quiesce().unwrap();
    let state = saved(&mut original);
    for (given, keeps) in [(SECOND, false), (SECOND, true), (FIRST, false), (FIRST, true)] {
        let mut clone = VmGenId::new("generation", given);
        clone.keeps = keeps;
        let machine = attach_quiet(&mut clone);
        clone.restore(Handover::new(state.borrowed()).for_clone()).unwrap();
        clone.resume().unwrap();
        let id = clone.generation().get();
        assert_eq!((in_page(&machine), machine.interrupts()), (id.in_memory(), 1));
        assert_eq!(clone.identities(), [Identity::new(Identity::GENERATION, id.to_string())]);
        assert!(id != FIRST && (id == SECOND || given == FIRST), "{id}");
    }
}

#[test]
fn a_device_that_is_not_attached_can_be_given_an_id() {
    let mut device = device();
    device.generation().set(SECOND).unwrap();
    let machine = attach(&mut device);
    assert_eq!((in_page(&machine), machine.interrupts()), (SECOND.in_memory(), 0));
}

#[test]
fn d2_states_are_refused_or_become_what_they_say() {
    let mut original = device();
    let _machine = attach(&mut original);
    let state = saved(&mut original);
    d2_mutations(
        || device().keep_when_restored(),
        &state,
        |device, machine| assert_eq!(in_page(machine), device.generation().get().in_memory()),
    );
}

#[test]
fn d2_a_refused_state_changes_nothing_in_a_clone_either() {
    let mut device = device();
    let machine = attach_quiet(&mut device);
    let state = saved(&mut device);
    for len in 0..state.payload.len() {
        let cut = SavedState::new(state.kind.clone(), state.version, state.payload[..len].to_vec());
        assert!(device.restore(Handover::new(cut)).is_err());
    }
    device.resume().unwrap();
    assert_eq!((in_page(&machine), machine.interrupts()), (FIRST.in_memory(), 0));
}

#[test]
fn a_reset_id_is_as_new() {
    reset_is_complete(device);
}

#[test]
fn a_detached_device_lets_go_of_its_machine_and_works_in_another() {
    lives_twice(&mut device(), |device, machine| {
        device.generation().set(FIRST).unwrap();
        assert_eq!((in_page(machine), machine.interrupts()), (FIRST.in_memory(), 1));
    });
}
