//! No hot path allocates: shown by an allocator that counts.

#[path = "../benches/support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use ossature::bus::Size;
use support::bus;
use support::rings::{DeviceRig, Layout as Chains, QueueRig};

thread_local! {
    /// Allocations of this thread.
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: the system's allocator does the work; counting neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise is the system's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the system's.
        unsafe { System.dealloc(memory, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of 100 rounds once the storage that is used again is there.
fn allocations<T>(mut round: impl FnMut() -> T) -> u64 {
    (0..10).for_each(|_| drop(round()));
    let before = COUNT.get();
    (0..100).for_each(|_| drop(round()));
    COUNT.get() - before
}

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| Box::new(1)), 100);
}

#[test]
fn a_dispatch_allocates_nothing() {
    let mut cursor = bus::ours(64).cursor();
    let mut addresses = bus::Addresses::new(64, 7);
    assert_eq!(allocations(|| cursor.read(addresses.next(), Size::B4)), 0);
}

#[test]
fn a_chain_allocates_nothing() {
    for layout in [Chains::Direct, Chains::Indirect] {
        for descriptors in [1, 3, 16] {
            let mut rig = QueueRig::new(descriptors, layout);
            assert_eq!(allocations(|| rig.batch()), 0, "{descriptors} descriptors");
        }
    }
}

#[test]
fn a_block_request_allocates_nothing() {
    for layout in [Chains::Direct, Chains::Indirect] {
        let mut rig = DeviceRig::blk(layout);
        assert_eq!(allocations(|| rig.batch(0)), 0);
    }
}

#[test]
fn a_packet_allocates_nothing() {
    for queue in [0, 1] {
        let mut rig = DeviceRig::net();
        assert_eq!(allocations(|| rig.batch(queue)), 0, "queue {queue}");
    }
}
