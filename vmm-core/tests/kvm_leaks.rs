//! What a machine took is given back: descriptors, threads, mappings. Alone in its process.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

use std::fs;
use std::sync::Arc;
use std::thread;

use guest::Guest;
use ossature_bus::Event;
use ossature_core::{Step, VmConfig};

fn count(folder: &str) -> usize {
    fs::read_dir(folder).expect("procfs").count()
}

/// Mappings of KVM's memory and of guests' RAM: the C library may keep mappings of its own.
fn vcpu_mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("procfs").matches("kvm-vcpu").count()
}

fn one_machine() {
    let guest = Guest::new(VmConfig { cpus: 2, ..VmConfig::default() }, &[0xeb, 0xfe]); // jmp $
    let event = Arc::new(Event::new().expect("an eventfd"));
    guest.vm.irqfd(&event, 5).expect("an irqfd");
    let vcpus = [0, 1].map(|index| guest.vcpu(index));
    let readers = vcpus.each_ref().map(|vcpu| vcpu.stats_reader());
    let threads = vcpus.map(|mut vcpu| {
        let kicker = vcpu.kicker();
        (
            kicker,
            thread::spawn(move || while vcpu.run_once().expect("a guest that spins") != Step::Interrupted {}),
        )
    });
    for (kicker, thread) in threads {
        kicker.kick();
        thread.join().expect("a vCPU's thread");
    }
    drop(readers);
}

#[test]
fn nothing_is_left_of_a_machine() {
    one_machine();
    let counts = || (count("/proc/self/fd"), count("/proc/self/task"), vcpu_mappings());
    let before = counts();
    for _ in 0..20 {
        one_machine();
    }
    assert_eq!(counts(), before);
    assert_eq!(before.2, 0);
}
