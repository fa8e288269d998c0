//! What is connected to a machine: interrupts, doorbells, register pages, other vCPUs, counters.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

#[cfg_attr(target_arch = "x86_64", path = "machine/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "machine/aarch64.rs")]
mod wired;

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::{Arc, mpsc};
use std::thread;

use guest::Seen::{Read, Write};
use guest::{Guest, MMIO, READ_TWICE, RING, SPIN, WRITE_AND_READ, pattern, run_to_halt};
use ossature_bus::Event;
use ossature_bus::Size::{B1, B4};
use ossature_core::{Doorbell, DoorbellAddress, Hypervisor, Kvm, Step, Vcpu, VmConfig, VmError};
use ossature_memory::RegisterPage;
use ossature_memory::vm_memory::GuestAddress;

/// Runs the vCPU on its own thread and reports each of its exits, until it is kicked.
fn run(mut vcpu: Vcpu) -> (mpsc::Receiver<Step>, thread::JoinHandle<()>) {
    let (steps, seen) = mpsc::channel();
    let thread = thread::spawn(move || {
        loop {
            match vcpu.run_once().expect("a guest that runs") {
                Step::Interrupted => return,
                step => steps.send(step).expect("a test that looks"),
            }
        }
    });
    (seen, thread)
}

#[test]
fn doorbells_ring_without_an_exit_until_they_are_dropped() {
    let guest = Guest::bare(RING);
    let bells = [
        Doorbell::new(DoorbellAddress::Mmio(MMIO + 0x50), B4, Some(5)),
        Doorbell::new(DoorbellAddress::Mmio(MMIO + 0x60), B4, None),
    ];
    let events = bells.map(|bell| {
        let event = Arc::new(Event::new().expect("an eventfd"));
        (guest.vm.ioeventfd(&event, bell).expect("an ioeventfd"), event)
    });
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    let counts = events.each_ref().map(|(_bell, event)| event.take().expect("a count"));
    assert_eq!(counts, [1, 1]);
    assert_eq!(guest.memory.take(), [Write(0x50, B4, 6)], "another value");
    let events = events.map(|(_bell, event)| event);
    run_to_halt(&mut vcpu);
    assert_eq!(guest.memory.take(), [Write(0x50, B4, 5), Write(0x50, B4, 6), Write(0x60, B1, 7)]);
    assert_eq!(events.map(|event| event.take().expect("a count")), [0, 0]);
}

#[test]
fn a_register_page_whose_slot_is_dropped_is_read_with_an_exit() {
    let guest = Guest::bare(READ_TWICE);
    let page = Arc::new(RegisterPage::new().expect("a page"));
    let mapped = guest.vm.map_register_page(GuestAddress(MMIO), &page).expect("a page");
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    assert_eq!(guest.memory.take().len(), usize::from(mapped.is_none()));
    drop(mapped);
    run_to_halt(&mut vcpu);
    assert_eq!(guest.memory.take(), [Read(0, B4)]);
    assert_eq!(Arc::strong_count(&page), 1, "the page is let go");
}

#[test]
fn writes_to_a_register_page_reach_the_bus() {
    let guest = Guest::bare(WRITE_AND_READ);
    let page = Arc::new(RegisterPage::new().expect("a page"));
    page.store(0, 0x1234_5678);
    let mapped = guest.vm.map_register_page(GuestAddress(MMIO), &page).expect("a page");
    let mut vcpu = guest.vcpu(0);
    run_to_halt(&mut vcpu);
    // Where the host has no such pages the read reaches the bus.
    let expected = match mapped {
        Some(_) => vec![Write(0, B4, 7), Write(8, B4, 0x1234_5678)],
        None => vec![Write(0, B4, 7), Read(0, B4), Write(8, B4, pattern(B4))],
    };
    assert_eq!(guest.memory.take(), expected);
    assert_eq!(page.load(0), 0x1234_5678, "only the device changes its registers");
}

#[test]
fn kvm_counts_exits() {
    let guest = Guest::bare(READ_TWICE);
    let mut vcpu = guest.vcpu(0);
    if !Kvm::open().expect("KVM").capabilities().stats {
        assert!(vcpu.stats_reader().is_err() && guest.vm.stats_reader().is_err());
        return;
    }
    let reader = vcpu.stats_reader().expect("counters");
    let exits = || {
        let stats = reader.read().expect("values");
        stats.into_iter().find(|stat| stat.name == "exits").expect("a counter of exits").values[0]
    };
    let before = exits();
    run_to_halt(&mut vcpu);
    assert!(exits() > before);
    let machine = guest.vm.stats_reader().expect("counters").read().expect("values");
    assert!(machine.iter().any(|stat| stat.name == "remote_tlb_flush"), "{machine:?}");
}

#[cfg(target_arch = "x86_64")]
#[test]
fn a_vcpu_of_a_numa_node_that_no_interrupt_reaches_is_refused() {
    use ossature_boot::{Numa, NumaNode};
    use ossature_core::machine::{BuildError, Machine};
    use ossature_memory::RamConfig;

    let kvm = Kvm::open().expect("KVM");
    let build = |nodes: &[u32]| {
        let numa = Numa::new(nodes.iter().map(|&cpus| NumaNode::new(cpus, 1 << 20)));
        let machine = Machine::builder("nodes").cpus(numa.cpus()).memory(RamConfig::new(numa.memory()));
        machine.numa(numa).build(&kvm).map(drop)
    };
    let errors = build(&[17, 1, 1, 1, 1, 1, 1, 1, 1]).expect_err("the last one would have the number 256");
    let [BuildError::Vm(VmError::VcpuNumber { index: 24, number: 256, max: 255 })] = errors.errors() else {
        panic!("{errors}");
    };
    build(&[17, 1, 1, 1, 1, 1, 1, 1]).expect("the last one has the number 224");
}

#[test]
fn what_a_machine_cannot_have_is_refused() {
    let kvm = Kvm::open().expect("KVM");
    let max = kvm.capabilities().max_vcpus;
    let too_many = VmConfig::new(max + 1);
    assert!(matches!(kvm.create_vm(&too_many), Err(VmError::TooManyVcpus { max: m, .. }) if m == max));
    let guest = Guest::bare(&[]);
    let event = Arc::new(Event::new().expect("an eventfd"));
    assert!(matches!(guest.vm.irqfd(&event, 5, None), Err(VmError::NoIrqchip { gsi: 5 })));
    assert!(matches!(guest.vm.set_memory(&guest.ram), Err(VmError::MemoryAlreadySet)));
}

#[test]
fn everything_has_a_descriptor_and_kvm_can_be_one() {
    let opened = File::options().read(true).write(true).open("/dev/kvm").expect("/dev/kvm");
    let kvm = Kvm::from_fd(opened.into()).expect("KVM");
    assert!(kvm.as_fd().as_raw_fd() > 2);
    let guest = Guest::bare(SPIN);
    let vcpu = guest.vcpu(0);
    let name = |fd: Option<BorrowedFd<'_>>| {
        let path = format!("/proc/self/fd/{}", fd.expect("a descriptor").as_raw_fd());
        fs::read_link(path).expect("procfs").to_string_lossy().into_owned()
    };
    assert_eq!(name(guest.vm.descriptor()), "anon_inode:kvm-vm");
    assert!(name(vcpu.descriptor()).starts_with("anon_inode:kvm-vcpu"));
}
