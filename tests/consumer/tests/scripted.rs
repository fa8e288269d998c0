//! The VMM where there is no KVM: its guest is a script.

mod machines;

use std::sync::{Arc, Mutex};

use consumer::Vmm;
use consumer::guest::{self, Guest, Then};
use consumer::printer::Paper;
use consumer::shout::{self, Shout};
use ossature::virtio::Inline;
use ossature::vmm::Registers;
use ossature::vmm::machine::Outcome;
use ossature::vmm::scripted::{Script, Scripted};

/// A guest for this VMM. Where its device is, is known when a machine of the same parts has been built.
fn scripted(guest: Guest) -> Scripted {
    let place = Arc::new(Mutex::new(None));
    let found = Arc::clone(&place);
    Vmm::parts("empty", &Arc::new(Paper::default()), Arc::new(Inline::new().unwrap()))
        .payload(move |_: &_, platform: &_| {
            *found.lock().unwrap() = guest::place(platform, shout::ID);
            Ok(Registers::default())
        })
        .build(&Scripted::new([Script::new()]))
        .unwrap();
    let place = place.lock().unwrap().unwrap();
    Scripted::new([guest.script(place)])
}

#[test]
fn two_machines_on_one_loop_are_watched_and_one_is_killed_by_a_time_out() {
    let scripted: Vec<_> = machines::GUESTS.iter().map(|guest| scripted(*guest)).collect();
    machines::run_and_kill([&scripted[0], &scripted[1]]);
    assert!(
        scripted.iter().all(|scripted| scripted.remaining() <= 1),
        "the last step of a guest that spins is it"
    );
}

#[test]
fn a_guest_that_never_kicks_is_not_answered() {
    let guest = Guest { text: "hello", then: Then::PowerOff };
    let scripted = Scripted::new([Script::new().await_kick()]);
    let vmm = Vmm::new("quiet", guest, Arc::new(Inline::new().unwrap()), &scripted).unwrap();
    vmm.machine.start().unwrap();
    assert_eq!(vmm.machine.stop().unwrap(), Outcome::Stopped);
    assert_eq!(vmm.paper.text(), "");
    assert_eq!(consumer::watch::counters(&vmm.machine)["shout.requests"], 0);
}

ossature::virtio::conformance_tests!(shout, Shout::new);
