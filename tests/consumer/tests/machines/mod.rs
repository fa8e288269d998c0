//! Two machines in one process, on whatever hypervisor.

use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use consumer::Vmm;
use consumer::guest::{COUNTER, Guest, Then};
use consumer::watch;
use ossature::bus::EventLoop;
use ossature::vmm::Hypervisor;
use ossature::vmm::machine::{MachineEvent, MachineHandle, Outcome};

pub const GUESTS: [Guest; 2] = [
    Guest { text: "hello from the first guest", then: Then::PowerOff },
    Guest { text: "and from the second, which spins", then: Then::Spin },
];

/// The first guest powers off and the second one spins; a thread follows both by its epoll, the loop of the devices
/// follows the second one too, a thread reads the counters, and the time-out of the second one comes.
pub fn run_and_kill(hypervisors: [&dyn Hypervisor; 2]) {
    let io = EventLoop::new().unwrap();
    let vmms: Vec<Vmm> = GUESTS
        .iter()
        .zip(hypervisors)
        .map(|(guest, hypervisor)| Vmm::new("guest", *guest, Arc::new(io.clone()), hypervisor).unwrap())
        .collect();
    let [first, second] = &vmms[..] else { unreachable!() };
    let handles: Vec<MachineHandle> = vmms.iter().map(|vmm| vmm.machine.handle()).collect();

    let looping = io.clone();
    let looping = thread::spawn(move || looping.run());
    let also_seen = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&also_seen);
    let events = second.machine.events().pollable().unwrap();
    let following = io.on_readable(events, move |events| {
        while let Some(event) = events.try_next() {
            seen.lock().unwrap().push(event);
        }
    });
    let following = following.unwrap();
    let followed = handles.clone();
    let follower = thread::spawn(move || watch::follow(&followed).unwrap());
    let meter = thread::spawn(move || {
        let printed = |handle, guest: &Guest| watch::until(handle, "printer.bytes", guest.text.len() as u64);
        handles.iter().zip(&GUESTS).map(|(handle, guest)| printed(handle, guest)).collect::<Vec<_>>()
    });

    first.machine.start().unwrap();
    second.machine.start().unwrap();
    assert_eq!(first.machine.wait().unwrap(), Outcome::Shutdown);
    for counters in meter.join().unwrap() {
        assert_eq!(counters["shout.requests"], 1, "{counters:?}");
        assert_eq!(counters["shout.needs_resets"], 0, "{counters:?}");
    }
    while second.machine.ram().dma().read_obj::<u16>(COUNTER).unwrap() == 0 {
        thread::yield_now();
    }
    assert_eq!(second.machine.wait_timeout(Duration::from_millis(50)).unwrap(), None);
    assert_eq!(second.machine.stop().unwrap(), Outcome::Stopped);

    for (vmm, guest) in vmms.iter().zip(&GUESTS) {
        assert_eq!(vmm.paper.text(), guest.text.to_ascii_uppercase());
    }
    let ended = |outcome| vec![MachineEvent::Started, MachineEvent::Ended(outcome)];
    let followed = follower.join().unwrap();
    assert_eq!(followed, [ended(Outcome::Shutdown), ended(Outcome::Stopped)]);
    io.stop();
    looping.join().unwrap().unwrap();
    // What the loop did not come to before it stopped.
    while io.pass().unwrap() {}
    drop(following);
    assert_eq!(*also_seen.lock().unwrap(), followed[1]);
}
