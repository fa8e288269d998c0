//! What virtio-queue does on a broken ring, and what ours does with the same one: the reasons why only its
//! validation of a queue's configuration is used.

use std::sync::Arc;

use ossature_bus::Event;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, Segment};
use virtio_queue::{Queue, QueueOwnedT, QueueT};

use crate::features::INDIRECT_DESC;
use crate::testing::{Desc, GuestRing, guest_ram};
use crate::{QueueBroken, QueueSetup, QueueState, VirtQueue};

const SIZE: u16 = 8;

/// The same ring under both.
fn both() -> (Dma, GuestRing, Queue, VirtQueue) {
    let dma = guest_ram(&[(0, 0x10_0000)]);
    let ring = GuestRing::new(dma.clone(), 0x1000, SIZE, 0);
    let theirs = Queue::try_from(virtio_queue::QueueState {
        max_size: SIZE,
        size: SIZE,
        ready: true,
        desc_table: ring.desc,
        avail_ring: ring.avail,
        used_ring: ring.used,
        ..virtio_queue::QueueState::default()
    })
    .unwrap();
    let event = || Arc::new(Event::new().unwrap());
    let state = QueueState::new(SIZE).at(ring.desc, ring.avail, ring.used);
    let setup = QueueSetup::new(0, state, dma.clone(), event(), event().into());
    let ours = setup.with_features(INDIRECT_DESC).build().unwrap();
    (dma, ring, theirs, ours)
}

fn buffer() -> Desc {
    Desc::readable(Segment { addr: GuestAddress(0x8000), len: 16 })
}

#[test]
fn a_bad_available_index_looks_like_an_empty_queue_that_is_never_empty() {
    let (dma, mut ring, mut theirs, mut ours) = both();
    ring.set_avail_index(SIZE + 1);
    for _ in 0..100 {
        assert!(theirs.pop_descriptor_chain(dma.memory()).is_none());
        assert!(theirs.enable_notification(dma.memory()).unwrap());
    }
    assert!(matches!(ours.pop(), Err(QueueBroken::AvailIndex { .. })));
    assert!(matches!(ours.enable_kicks(), Err(QueueBroken::AvailIndex { .. })));
}

#[test]
fn the_documented_loop_panics_on_a_bad_available_index() {
    let (dma, mut ring, mut theirs, _) = both();
    ring.set_avail_index(SIZE + 1);
    // The documentation unwraps this.
    assert!(theirs.iter(dma.memory()).is_err());
}

#[test]
fn a_truncated_chain_ends_like_a_complete_one() {
    let (dma, mut ring, mut theirs, mut ours) = both();
    ring.set_desc(0, Desc { flags: Desc::NEXT, next: SIZE, ..buffer() });
    ring.publish(0);
    let chain = theirs.pop_descriptor_chain(dma.memory()).unwrap();
    let descs: Vec<_> = chain.collect();
    assert_eq!(descs.len(), 1);
    // All that tells is the flag on the last one.
    assert!(descs[0].has_next());
    assert_eq!(ours.pop().unwrap_err(), QueueBroken::Next { next: SIZE, len: SIZE });
}

#[test]
fn a_head_outside_the_table_looks_like_a_chain_of_nothing() {
    let (dma, mut ring, mut theirs, mut ours) = both();
    ring.publish(SIZE);
    assert_eq!(theirs.pop_descriptor_chain(dma.memory()).unwrap().count(), 0);
    assert_eq!(ours.pop().unwrap_err(), QueueBroken::Head { head: SIZE, size: SIZE });
}

#[test]
fn two_walks_read_guest_memory_twice() {
    let (dma, mut ring, mut theirs, mut ours) = both();
    ring.offer(0, &[buffer()]);
    let chain = theirs.pop_descriptor_chain(dma.memory()).unwrap();
    let our_chain = ours.pop().unwrap().unwrap();
    assert_eq!(chain.clone().readable().map(|desc| desc.len()).sum::<u32>(), 16);
    ring.set_desc(0, Desc { len: 4096, ..buffer() });
    assert_eq!(chain.readable().map(|desc| desc.len()).sum::<u32>(), 4096);
    assert_eq!(our_chain.readable_len(), 16);
}

#[test]
fn nothing_bounds_what_is_in_flight() {
    let (dma, mut ring, mut theirs, mut ours) = both();
    let mut held = Vec::new();
    for _ in 0..100 {
        ring.offer(0, &[buffer()]);
        held.push(theirs.pop_descriptor_chain(dma.memory()).unwrap());
    }
    assert!(held.iter().all(|chain| chain.head_index() == 0));
    ring.set_avail_index(2);
    let _held = ours.pop().unwrap().unwrap();
    assert_eq!(ours.pop().unwrap_err(), QueueBroken::HeadInFlight { head: 0 });
}

#[test]
fn add_used_publishes_each_element_at_once() {
    let (dma, mut ring, mut theirs, _) = both();
    ring.offer(0, &[buffer()]);
    theirs.add_used(dma.memory(), 0, 0).unwrap();
    assert_eq!(ring.used_index(), 1);
    let (_, mut ring, _, mut ours) = both();
    ring.offer(0, &[buffer()]);
    let chain = ours.pop().unwrap().unwrap();
    ours.complete(chain, 0).unwrap();
    assert_eq!(ring.used_index(), 0);
    ours.flush().unwrap();
    assert_eq!(ring.used_index(), 1);
}

#[test]
fn interrupt_suppression_is_lost_with_the_state() {
    let (dma, ring, mut theirs, _) = both();
    theirs.set_event_idx(true);
    theirs.add_used(dma.memory(), 0, 0).unwrap();
    ring.set_used_event(0);
    // Saved before the decision on an interrupt: it is not in the state, and the interrupt never comes.
    let mut restored = Queue::try_from(theirs.state()).unwrap();
    assert!(!restored.needs_notification(dma.memory()).unwrap());
    assert!(theirs.needs_notification(dma.memory()).unwrap());
}
