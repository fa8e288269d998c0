//! What a machine took is given back: descriptors, threads, mappings. Alone in its process.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;
mod taken;

use std::fs;
use std::sync::Arc;
use std::thread;

use guest::{Guest, SPIN};
use ossature_bus::Event;
use ossature_core::{Kvm, Step, VmConfig};
use taken::{given_back, taken};

/// Mappings of KVM's memory and of guests' RAM: the C library may keep mappings of its own.
fn vcpu_mappings() -> usize {
    fs::read_to_string("/proc/self/maps").expect("procfs").matches("kvm-vcpu").count()
}

fn one_machine() {
    let config = VmConfig::new(2);
    let rings = Kvm::open().expect("KVM").capabilities().dirty_ring != 0;
    let guest = Guest::new(if rings { config.dirty_ring(1024) } else { config }, SPIN);
    let mut log = guest.vm.dirty_log(&guest.ram).expect("a log");
    let event = Arc::new(Event::new().expect("an eventfd"));
    let line = guest.vm.irqfd(&event, 5, None).expect("an irqfd");
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
    log.take().expect("dirty pages");
    drop((readers, line, log));
}

#[test]
fn nothing_is_left_of_a_machine() {
    one_machine();
    let before = taken();
    for _ in 0..20 {
        one_machine();
    }
    given_back(before);
    assert_eq!(vcpu_mappings(), 0);
}
