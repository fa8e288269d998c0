//! Kicks: out of a loop that never exits, out of waits, lost by nobody.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

use std::sync::mpsc;
use std::thread;

use guest::{Guest, SPIN, WAIT};
use ossature_core::{KickSignal, Kicker, Step, Vcpu, VmConfig, install_kick_handler};

/// Runs the vCPU on its own thread; reports each interruption until the receiver is gone.
fn spin(mut vcpu: Vcpu) -> (Kicker, mpsc::Receiver<Step>, thread::JoinHandle<()>) {
    let kicker = vcpu.kicker();
    let (steps, seen) = mpsc::channel();
    let thread =
        thread::spawn(move || while steps.send(vcpu.run_once().expect("a guest that spins")).is_ok() {});
    (kicker, seen, thread)
}

fn end(kicker: &Kicker, seen: mpsc::Receiver<Step>, thread: thread::JoinHandle<()>) {
    drop(seen);
    kicker.kick();
    thread.join().expect("the vCPU's thread ends");
}

fn kick_a_spinning_vcpu(kick: KickSignal, rounds: u32) {
    let guest = Guest::new(VmConfig::default().kick(kick), SPIN);
    let (kicker, seen, thread) = spin(guest.vcpu(0));
    for _ in 0..rounds {
        // An interruption without a kick must not stand in for one that is lost.
        while seen.try_recv().is_ok() {}
        kicker.kick();
        assert_eq!(seen.recv().expect("a vCPU that runs"), Step::Interrupted);
    }
    end(&kicker, seen, thread);
}

#[test]
fn ten_thousand_kicks_each_interrupt_a_spinning_vcpu() {
    kick_a_spinning_vcpu(KickSignal::default(), 10_000);
}

#[test]
fn ten_thousand_kicks_with_a_handler() {
    let kick = install_kick_handler(vmm_sys_util::signal::SIGRTMIN() + 1);
    kick_a_spinning_vcpu(kick.expect("a signal that can be handled"), 10_000);
}

#[test]
fn a_kick_with_a_handler_reaches_a_thread_that_was_started_with_the_signal_blocked() {
    let number = vmm_sys_util::signal::SIGRTMIN() + 2;
    let kick = install_kick_handler(number).expect("a signal that can be handled");
    vmm_sys_util::signal::block_signal(number).expect("a signal that can be blocked");
    let guest = Guest::new(VmConfig::new(2).kick(kick), SPIN);
    let _first = guest.vcpu(0);
    // It waits in the kernel until the first one starts it.
    let (kicker, seen, thread) = spin(guest.vcpu(1));
    for _ in 0..3 {
        // By now it is in the kernel; earlier, a flag would do.
        thread::sleep(std::time::Duration::from_millis(200));
        kicker.kick();
        let step = seen.recv_timeout(std::time::Duration::from_secs(60));
        assert_eq!(step.expect("an interruption"), Step::Interrupted);
    }
    end(&kicker, seen, thread);
}

#[test]
fn kicks_from_many_threads_at_once_are_harmless() {
    let guest = Guest::bare(SPIN);
    let (kicker, seen, thread) = spin(guest.vcpu(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..1000).for_each(|_| kicker.kick()));
        }
    });
    // None of them is outstanding for ever: a last one is seen, after those.
    while seen.try_recv().is_ok() {}
    kicker.kick();
    assert_eq!(seen.recv().expect("a vCPU that runs"), Step::Interrupted);
    end(&kicker, seen, thread);
}

#[test]
fn a_kick_before_the_vcpu_runs_is_kept() {
    let guest = Guest::bare(SPIN);
    let mut vcpu = guest.vcpu(0);
    vcpu.kicker().kick();
    assert_eq!(vcpu.run_once().expect("an interruption"), Step::Interrupted);
}

#[test]
fn a_vcpu_that_moves_between_threads_is_still_kicked() {
    let guest = Guest::bare(SPIN);
    let mut vcpu = guest.vcpu(0);
    for _ in 0..10 {
        let kicker = vcpu.kicker();
        let (about_to_run, runs) = mpsc::channel();
        let thread = thread::spawn(move || {
            about_to_run.send(()).expect("somebody who kicks");
            assert_eq!(vcpu.run_once().expect("an interruption"), Step::Interrupted);
            vcpu
        });
        runs.recv().expect("a thread");
        kicker.kick();
        vcpu = thread.join().expect("a vCPU");
        // Its last thread is gone: there is nobody to signal, and the kick waits for the next.
        kicker.kick();
        assert_eq!(vcpu.run_once().expect("an interruption"), Step::Interrupted);
    }
}

#[test]
fn a_kicker_outlives_its_vcpu() {
    let guest = Guest::bare(SPIN);
    let vcpu = guest.vcpu(0);
    let kicker = vcpu.kicker();
    drop((vcpu, guest));
    kicker.kick();
}

#[test]
fn a_halted_vcpu_and_one_that_was_never_started_are_kicked_too() {
    let guest = Guest::new(VmConfig::new(2), WAIT);
    for index in 0..2 {
        let (kicker, seen, thread) = spin(guest.vcpu(index));
        for _ in 0..100 {
            kicker.kick();
            while seen.recv().expect("a vCPU that waits") != Step::Interrupted {}
        }
        end(&kicker, seen, thread);
    }
}
