//! RAM that comes and goes, and the log of the pages that are written.
#![allow(clippy::expect_used, clippy::panic)] // helpers of tests, too, may panic

mod guest;

#[cfg_attr(target_arch = "x86_64", path = "memory/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "memory/aarch64.rs")]
mod code;

use std::ops::Range;

use code::{READ, WRITE, WRITE_MORE, at_more, value, write_pages};
use guest::{CODE, DATA, Guest, run_to_halt};
use ossature_core::{GuestDirtyLog, Hypervisor, Irqchip, Kvm, Vcpu, VmConfig, VmError, error_chain};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, DirtyPages};

const MORE: u64 = 0x10_0000;
const PAGE: u64 = 0x1000;

fn again(vcpu: &mut Vcpu) {
    vcpu.set_registers(&at_more()).expect("registers");
}

#[test]
fn ram_comes_and_goes_while_the_guest_lives() {
    let guest = Guest::bare(READ);
    let mut vcpu = guest.vcpu_with(0, at_more());
    assert_eq!(run_to_halt(&mut vcpu), 1, "nothing there");
    for round in 0..1000_u32 {
        let slot = guest.ram.add_slot(MORE, 2 * PAGE, &Backing::Anonymous).expect("a slot");
        let mut dma = guest.ram.dma();
        dma.refresh();
        dma.write_obj(GuestAddress(MORE), round).expect("RAM");
        again(&mut vcpu);
        assert_eq!(run_to_halt(&mut vcpu), 0, "RAM");
        assert_eq!(value(&vcpu.registers().expect("registers")), u64::from(round));
        guest.ram.remove_slot(slot).expect("the slot");
        again(&mut vcpu);
        assert_eq!(run_to_halt(&mut vcpu), 1, "nothing there again");
    }
}

#[test]
fn ram_that_the_kernel_refuses_is_not_added() {
    let guest = Guest::bare(&[]);
    let page = std::sync::Arc::new(ossature_memory::RegisterPage::new().expect("a page"));
    let mapped = guest.vm.map_register_page(GuestAddress(MORE), &page).expect("a page");
    if mapped.is_none() {
        return;
    }
    let error = guest.ram.add_slot(MORE, PAGE, &Backing::Anonymous).expect_err("in use by a page");
    assert!(error_chain(&error).contains("KVM_SET_USER_MEMORY_REGION"), "{}", error_chain(&error));
    assert_eq!(guest.ram.slots().len(), 1);
    drop(mapped);
    guest.ram.add_slot(MORE, PAGE, &Backing::Anonymous).expect("not in use any more");
}

/// Without the page of the code: KVM counts a page that it maps writable.
fn ranges(pages: &DirtyPages) -> Vec<Range<u64>> {
    let code = u64::from(CODE);
    let mut ranges: Vec<_> = pages.ranges().collect();
    for range in &mut ranges {
        if range.start == code {
            range.start += PAGE;
        } else if range.end == code + PAGE {
            range.end -= PAGE;
        }
    }
    ranges.retain(|range| !range.is_empty());
    ranges
}

fn taken(log: &mut GuestDirtyLog) -> Vec<Range<u64>> {
    ranges(&log.take().expect("dirty pages"))
}

fn one(page: u64) -> Range<u64> {
    some(page, 1)
}

fn some(first: u64, pages: u64) -> Range<u64> {
    first..first + pages * PAGE
}

fn both_kinds() -> Vec<VmConfig> {
    let bitmap = VmConfig::default().irqchip(Irqchip::None);
    let rings = Kvm::open().expect("KVM").capabilities().dirty_ring != 0;
    let ring = rings.then(|| bitmap.clone().dirty_ring(1024));
    [bitmap].into_iter().chain(ring).collect()
}

#[test]
fn the_log_has_what_the_guest_and_this_process_write_in_each_slot() {
    for config in both_kinds() {
        let guest = Guest::new(config, WRITE);
        guest.ram.add_slot(MORE, 16 * PAGE, &Backing::Anonymous).expect("a slot");
        let mut vcpu = guest.vcpu_with(0, at_more());
        let mut log = guest.vm.dirty_log(&guest.ram).expect("a log");
        assert!(guest.vm.dirty_log(&guest.ram).is_err(), "one at a time");
        run_to_halt(&mut vcpu);
        guest.write(0x8000, &[1]);
        assert_eq!(taken(&mut log), [one(DATA), one(0x8000), one(MORE + 0x3000)]);
        assert_eq!(taken(&mut log), []);
        run_to_halt(&mut vcpu);
        assert_eq!(taken(&mut log), [one(0x5000)]);
        again(&mut vcpu);
        run_to_halt(&mut vcpu);
        assert_eq!(taken(&mut log), [one(DATA), one(MORE + 0x3000)], "watched again");
        // What is written without a log is not in the next one.
        drop(log);
        run_to_halt(&mut vcpu);
        let mut log = guest.vm.dirty_log(&guest.ram).expect("another log");
        assert_eq!(taken(&mut log), []);
        again(&mut vcpu);
        run_to_halt(&mut vcpu);
        assert_eq!(taken(&mut log), [one(DATA), one(MORE + 0x3000)]);
    }
}

#[test]
fn a_slot_that_is_added_while_the_log_runs_is_logged_too() {
    for config in both_kinds() {
        let guest = Guest::new(config, WRITE_MORE);
        let mut vcpu = guest.vcpu_with(0, at_more());
        let mut log = guest.vm.dirty_log(&guest.ram).expect("a log");
        let slot = guest.ram.add_slot(MORE, 16 * PAGE, &Backing::Anonymous).expect("a slot");
        assert_eq!(taken(&mut log), [some(MORE, 16)], "all of it once");
        assert_eq!(run_to_halt(&mut vcpu), 0);
        assert_eq!(taken(&mut log), [one(MORE + 0x3000)]);
        again(&mut vcpu);
        run_to_halt(&mut vcpu);
        guest.ram.remove_slot(slot).expect("the slot");
        assert_eq!(taken(&mut log), [], "forgotten");
    }
}

/// How many pages [`write_pages`] writes from [`MORE`] on.
const PAGES: u64 = 3000;

/// Has the guest write all pages, twice.
fn written(config: VmConfig, pause: u8, check: impl Fn(usize, &[Range<u64>])) {
    let guest = Guest::new(config, &write_pages(pause));
    guest.ram.add_slot(MORE, PAGES * PAGE, &Backing::Anonymous).expect("a slot");
    let mut vcpu = guest.vcpu_with(0, at_more());
    let mut log = guest.vm.dirty_log(&guest.ram).expect("a log");
    for _ in 0..2 {
        let exits = run_to_halt(&mut vcpu);
        check(exits, &taken(&mut log));
        again(&mut vcpu);
    }
}

#[test]
fn a_ring_that_is_full_is_emptied_and_the_guest_goes_on() {
    for config in both_kinds() {
        let is_ring = format!("{config:?}").contains("Some(1024)");
        // So that a KVM that has to carry out the instructions itself looks at the ring often enough.
        written(config, 30, |exits, pages| {
            assert_eq!(exits > 0, is_ring, "{exits} exits");
            assert_eq!(pages, [some(MORE, PAGES)]);
        });
    }
}

#[test]
fn a_ring_that_the_kernel_overruns_loses_no_page() {
    for config in both_kinds() {
        written(config, 0, |_, pages| {
            assert!(
                pages.iter().any(|range| range.start <= MORE && range.end == MORE + PAGES * PAGE),
                "{pages:x?}"
            );
        });
    }
}

#[test]
fn a_ring_of_no_possible_size_is_refused() {
    let kvm = Kvm::open().expect("KVM");
    for entries in [0, 3, 1000, u32::MAX] {
        let error = kvm.create_vm(&VmConfig::default().dirty_ring(entries)).expect_err("no such ring");
        assert!(matches!(error, VmError::Call { .. } | VmError::Unsupported { .. }), "{error}");
        assert!(error.to_string().contains("DIRTY_LOG_RING"), "{error}");
    }
}
