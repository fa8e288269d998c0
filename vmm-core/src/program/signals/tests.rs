//! Signals to one thread: each test raises them on its own, where they are blocked. What changes the whole
//! process (its end, its stop, what it ignores) is tested on a VMM.

use std::sync::atomic::AtomicU32;

use super::*;
use crate::machine::{Machine, Outcome};
use crate::scripted::{Script, Scripted};
use crate::sigset::raise;

const AN_HOUR: Duration = Duration::from_secs(3600);

/// A machine whose guest does nothing until it is stopped, and the loop of this thread.
fn machine() -> (Machine, EventLoop) {
    let machine = Machine::builder("signals").build(&Scripted::new([Script::new()])).unwrap();
    (machine, EventLoop::new().unwrap())
}

/// A function to be called, and how often it was.
fn counted() -> (Arc<AtomicU32>, impl FnMut() + Send + 'static) {
    let count = Arc::new(AtomicU32::new(0));
    let counter = count.clone();
    (count, move || _ = counter.fetch_add(1, Ordering::Relaxed))
}

/// A power button that can be pressed, and how often it was.
fn button() -> (Arc<AtomicU32>, impl FnMut() -> io::Result<()> + Send + 'static) {
    let (presses, mut on_press) = counted();
    let press = move || {
        on_press();
        Ok(())
    };
    (presses, press)
}

/// Has all turns that are due.
fn turns(here: &EventLoop) {
    while here.pass().unwrap() {}
}

#[test]
fn t4_requests_and_deadly_signals_stop_the_machine() {
    for (signal, deadly) in [libc::SIGINT, libc::SIGHUP, libc::SIGQUIT, libc::SIGTERM]
        .map(|signal| (signal, 0))
        .into_iter()
        .chain(DEADLY.map(|signal| (signal, signal)))
    {
        let (machine, here) = machine();
        let heeded = Signals::new(machine.handle()).heed_on(&here).unwrap();
        machine.start().unwrap();
        raise(signal);
        assert_eq!(machine.wait_on(&here).unwrap(), Outcome::Stopped, "{signal}");
        assert_eq!(heeded.deadly.load(Ordering::Relaxed), deadly, "{signal}");
        if deadly == 0 {
            heeded.raise_deadly();
        }
    }
}

#[test]
fn t4_a_term_signal_presses_the_button_and_grace_ends_what_does_not_power_off() {
    let (machine, here) = machine();
    let (presses, press) = button();
    let _heeded =
        Signals::new(machine.handle()).power_button(Duration::from_millis(1), press).heed_on(&here).unwrap();
    machine.start().unwrap();
    raise(libc::SIGTERM);
    assert_eq!(machine.wait_on(&here).unwrap(), Outcome::Stopped);
    assert_eq!(presses.load(Ordering::Relaxed), 1);
}

#[test]
fn t4_a_second_term_signal_does_not_wait_for_the_guest() {
    let (machine, here) = machine();
    let (presses, press) = button();
    let _heeded = Signals::new(machine.handle()).power_button(AN_HOUR, press).heed_on(&here).unwrap();
    machine.start().unwrap();
    raise(libc::SIGTERM);
    turns(&here);
    assert_eq!((presses.load(Ordering::Relaxed), machine.outcome()), (1, None));
    raise(libc::SIGTERM);
    assert_eq!(machine.wait_on(&here).unwrap(), Outcome::Stopped);
    assert_eq!(presses.load(Ordering::Relaxed), 1);
}

#[test]
fn t4_a_button_that_cannot_be_pressed_is_no_button() {
    let (machine, here) = machine();
    let press = || Err(io::ErrorKind::NotConnected.into());
    let _heeded = Signals::new(machine.handle()).power_button(AN_HOUR, press).heed_on(&here).unwrap();
    machine.start().unwrap();
    raise(libc::SIGTERM);
    assert_eq!(machine.wait_on(&here).unwrap(), Outcome::Stopped);
}

#[test]
fn t5_a_window_that_changes_and_a_process_that_goes_on_are_told_and_the_machine_runs_on() {
    let (machine, here) = machine();
    let ((stops, on_stop), (continues, on_continue), (changes, on_change)) =
        (counted(), counted(), counted());
    let _heeded = Signals::new(machine.handle())
        .job_control(on_stop, on_continue)
        .window_change(on_change)
        .heed_on(&here)
        .unwrap();
    machine.start().unwrap();
    raise(libc::SIGWINCH);
    raise(libc::SIGCONT);
    turns(&here);
    let counts = [&stops, &continues, &changes].map(|count| count.load(Ordering::Relaxed));
    assert_eq!((counts, machine.outcome()), ([0, 1, 1], None));
    raise(libc::SIGINT);
    assert_eq!(machine.wait_on(&here).unwrap(), Outcome::Stopped);
}

#[test]
fn e5_io_signals_are_blocked_for_the_thread_and_those_that_it_starts() {
    block_io_signals().unwrap();
    std::thread::spawn(|| {
        // Would end the process.
        raise(libc::SIGXFSZ);
        raise(libc::SIGPIPE);
    })
    .join()
    .unwrap();
}

#[test]
fn a_signal_that_a_vmm_heeds_itself_stops_nothing() {
    let (machine, here) = machine();
    let (count, on_signal) = counted();
    let heeded = Signals::new(machine.handle()).on_signal(libc::SIGUSR1, on_signal).heed_on(&here).unwrap();
    machine.start().unwrap();
    raise(libc::SIGUSR1);
    turns(&here);
    assert_eq!((count.load(Ordering::Relaxed), machine.outcome()), (1, None));
    raise(libc::SIGUSR2);
    assert_eq!(machine.wait_on(&here).unwrap(), Outcome::Stopped);
    assert_eq!(heeded.deadly.load(Ordering::Relaxed), libc::SIGUSR2);
}
