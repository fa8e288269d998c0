//! Machines on this machine's KVM: paused and resumed a thousand times, three in one process, given back whole.
#![allow(clippy::unwrap_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;
mod taken;

use std::sync::{Arc, Mutex};

use guest::{COUNT, PRINT_AND_POWER_OFF, counter, machine, power, serial};
use ossature_boot::Platform;
use ossature_core::Kvm;
use ossature_core::machine::{LifecycleState, Machine, Outcome};
use ossature_legacy::backend;
use ossature_memory::GuestMmap;
use taken::{given_back, taken};

fn wait_until_it_counts(machine: &Machine) {
    let before = counter(machine);
    while counter(machine) == before {
        std::thread::yield_now();
    }
}

#[test]
fn a_spinning_guest_is_paused_in_each_of_1000_pauses_and_goes_on_after_it() {
    let machine = machine("pauses", COUNT).build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    for _ in 0..1000 {
        let paused = machine.pause().unwrap();
        let before = counter(&machine);
        assert_eq!(paused.state(), LifecycleState::Paused);
        assert_eq!(counter(&machine), before);
        paused.resume().unwrap();
        wait_until_it_counts(&machine);
    }
    assert!(matches!(machine.stop().unwrap(), Outcome::Stopped));
}

#[test]
fn three_machines_in_one_process_do_not_mind_each_other() {
    let kvm = Kvm::open().unwrap();
    let machines = ["one", "two", "three"].map(|name| machine(name, COUNT).statistics().build(&kvm).unwrap());
    for machine in &machines {
        machine.start().unwrap();
    }
    let [one, two, three] = &machines;
    for machine in [one, two, three] {
        wait_until_it_counts(machine);
    }
    one.pause().unwrap().keep();
    let before = counter(one);
    wait_until_it_counts(two);
    two.stop().unwrap();
    wait_until_it_counts(three);
    assert_eq!(counter(one), before);
    one.resume().unwrap();
    wait_until_it_counts(one);

    let mut exits = None;
    one.metrics(&mut |scope, metric, value| {
        if (scope, metric.name) == ("vcpu0", "exits") {
            exits = Some(value);
        }
    });
    assert!(exits.is_some(), "KVM counts exits");
}

#[test]
fn a_guest_prints_and_powers_off() {
    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);
    impl std::io::Write for Output {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let output = Output::default();
    let serial = serial("serial", backend::writer(output.clone()));
    let machine = machine("prints", PRINT_AND_POWER_OFF)
        .device(serial)
        .devices(power())
        .build(&Kvm::open().unwrap())
        .unwrap();
    machine.start().unwrap();
    assert!(matches!(machine.wait().unwrap(), Outcome::Shutdown));
    assert_eq!(*output.0.lock().unwrap(), b"ok\n");
}

#[test]
fn d7_a_build_that_fails_leaves_nothing_behind() {
    let kvm = Kvm::open().unwrap();
    let fail = || {
        let refuses = |_: &GuestMmap, _: &Platform| Err("no such payload".into());
        let serial = serial("serial", backend::none());
        let error = Machine::builder("x").payload(refuses).device(serial).build(&kvm).unwrap_err();
        assert_eq!(error.to_string(), "no such payload");
    };
    fail();
    let before = taken();
    for _ in 0..10 {
        fail();
    }
    given_back(before);
}

#[test]
fn descriptors_and_threads_are_back_where_they_were_after_a_drop() {
    let kvm = Kvm::open().unwrap();
    let round = || {
        let serial = serial("serial", backend::none());
        let machine = machine("dropped", COUNT)
            .cpus(2)
            .device(serial)
            .devices(power())
            .statistics()
            .build(&kvm)
            .unwrap();
        machine.events().pollable().unwrap();
        machine.start().unwrap();
        wait_until_it_counts(&machine);
    };
    round();
    let before = taken();
    for _ in 0..20 {
        round();
    }
    given_back(before);
}
