//! A machine on this machine's KVM that several threads reach by its handle.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use guest::{COUNT, counter, machine as built, serial};
use ossature_core::Kvm;
use ossature_core::machine::{LifecycleState, MachineEvent, Outcome};
use ossature_legacy::backend;

/// Waits until `what` has happened. One that never happens fails after two minutes.
fn until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(120), "{what} does not happen");
        thread::yield_now();
    }
}

#[test]
fn one_waits_with_a_timeout_another_reads_metrics_and_a_third_pauses_a_thousand_times() {
    let machine = built("handles", COUNT)
        .device(serial("serial", backend::none()))
        .statistics()
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    let (timeouts, rounds, pauses) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
    let mut events = machine.events();
    thread::scope(|scope| {
        let waiter = scope.spawn(|| {
            let handle = machine.handle();
            loop {
                match handle.wait_timeout(Duration::from_millis(1)).unwrap() {
                    Some(outcome) => return outcome,
                    None => timeouts.fetch_add(1, Ordering::Relaxed),
                };
            }
        });
        let without = scope.spawn(|| machine.handle().wait().unwrap());
        let reader = scope.spawn(|| {
            let handle = machine.handle();
            let mut exits = 0;
            while handle.outcome().is_none() {
                handle.metrics(&mut |scope, metric, value| {
                    rounds.fetch_add(u32::from(scope == "serial"), Ordering::Relaxed);
                    if (scope, metric.name) == ("vcpu0", "exits") {
                        assert!(value >= exits, "a counter that goes back: {exits}, {value}");
                        exits = value;
                    }
                });
            }
        });
        let handle = machine.handle();
        for _ in 0..1000 {
            let paused = handle.pause().unwrap();
            let before = counter(&machine);
            assert_eq!(paused.state(), LifecycleState::Paused);
            assert_eq!(counter(&machine), before, "it runs while it is paused");
            pauses.fetch_add(1, Ordering::Relaxed);
            paused.resume().unwrap();
        }
        let before = counter(&machine);
        until("it counts", || counter(&machine) != before);
        // Both ways to wait, and a time-out that did pass.
        until("a time-out", || timeouts.load(Ordering::Relaxed) > 0);
        until("a look at the metrics", || rounds.load(Ordering::Relaxed) > 0);
        handle.stop();
        assert_eq!(waiter.join().unwrap(), Outcome::Stopped);
        assert_eq!(without.join().unwrap(), Outcome::Stopped);
        reader.join().unwrap();
    });
    assert_eq!(pauses.into_inner(), 1000);
    let mut seen = (0, 0);
    loop {
        match events.next_timeout(Duration::from_secs(120)).expect("the end") {
            MachineEvent::Paused => seen.0 += 1,
            MachineEvent::Resumed => seen.1 += 1,
            MachineEvent::Ended(outcome) => break assert_eq!(outcome, Outcome::Stopped),
            _ => {}
        }
    }
    // The log keeps the newest ones.
    assert!(seen.0 > 0 && seen.1 > 0, "{seen:?}");
}

#[test]
fn two_threads_pause_and_none_finds_the_machine_in_the_others_pause() {
    let machine = built("handles", COUNT).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    let paused_by_one = AtomicU32::new(0);
    thread::scope(|scope| {
        let pause = |_| {
            scope.spawn(|| {
                let (handle, mut done) = (machine.handle(), 0);
                while done < 300 {
                    // While the other one has it paused it cannot be paused: an error, never a second guard.
                    let Ok(paused) = handle.pause() else { continue };
                    assert_eq!(paused_by_one.fetch_add(1, Ordering::SeqCst), 0, "two have it paused");
                    paused.vcpus().registers(0).unwrap();
                    paused_by_one.fetch_sub(1, Ordering::SeqCst);
                    paused.resume().unwrap();
                    done += 1;
                }
            })
        };
        for thread in [0, 1].map(pause) {
            thread.join().unwrap();
        }
    });
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(machine.stop().unwrap(), Outcome::Stopped);
}
