//! The queue against a driver, right and wrong.

use std::sync::Arc;

use ossature_bus::Event;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, DirtyLog, Ram, RamConfig, Segment};
use proptest::prelude::*;

use super::*;
use crate::features::{EVENT_IDX, INDIRECT_DESC};
use crate::testing::{Desc, GuestRing, Used, guest_ram};

const RAM: u64 = 0x10_0000;
const DATA: u64 = 0x2_0000;

struct Setup {
    queue: VirtQueue,
    ring: GuestRing,
    irq: Arc<Event>,
}

fn event() -> Arc<Event> {
    Arc::new(Event::new().unwrap())
}

fn set_up(ring: &GuestRing, dma: Dma, start: u16, irq: Arc<Event>) -> QueueSetup {
    let state = QueueState::new(ring.size).at(ring.desc, ring.avail, ring.used).from_index(start);
    QueueSetup::new(0, state, dma, event(), irq.into()).with_max_size(256).with_features(INDIRECT_DESC)
}

/// RAM with a hole of 64 KiB at 1 MiB.
fn setup_at(size: u16, start: u16, event_idx: bool) -> Setup {
    let dma = guest_ram(&[(0, RAM as usize), (RAM + 0x1_0000, 0x1_0000)]);
    let ring = GuestRing::new(dma.clone(), 0x1000, size, start);
    let irq = event();
    let features = INDIRECT_DESC | if event_idx { EVENT_IDX } else { 0 };
    let queue = set_up(&ring, dma, start, irq.clone()).with_features(features).build().unwrap();
    Setup { queue, ring, irq }
}

fn setup(size: u16) -> Setup {
    setup_at(size, 0, false)
}

fn data(i: u64, len: u32) -> Segment {
    Segment { addr: GuestAddress(DATA + 0x1000 * i), len }
}

fn readable() -> Desc {
    Desc::readable(data(0, 16))
}

fn writable() -> Desc {
    Desc::writable(data(1, 32))
}

/// The queue broke as `why` says, and says so for ever.
fn broke(queue: &mut VirtQueue, why: QueueBroken) {
    assert_eq!(queue.pop().unwrap_err(), why);
    assert_eq!(queue.pop().unwrap_err(), why);
    assert_eq!(queue.flush().unwrap_err(), why);
    assert_eq!(queue.enable_kicks().unwrap_err(), why);
    assert_eq!(queue.disable_kicks().unwrap_err(), why);
    assert_eq!(queue.broken(), Some(why));
}

#[test]
fn a_chain_goes_there_and_back() {
    let Setup { mut queue, mut ring, irq } = setup(8);
    assert!(queue.pop().unwrap().is_none());
    ring.offer(3, &[readable(), writable(), writable()]);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.head(), 3);
    assert_eq!(chain.readable(), [data(0, 16)]);
    assert_eq!(chain.writable(), [data(1, 32), data(1, 32)]);
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 64));
    queue.complete(chain, 7).unwrap();
    assert_eq!(ring.take_used(), None);
    queue.flush().unwrap();
    assert_eq!(ring.take_used(), Some(Used { head: 3, len: 7 }));
    assert_eq!(irq.take().unwrap(), 1);
    queue.flush().unwrap();
    assert_eq!(irq.take().unwrap(), 0);
}

#[test]
fn an_indirect_chain_may_follow_direct_descriptors() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer_indirect(0, DATA + 0x8000, &[readable(), writable()]);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable().len(), chain.writable().len()), (1, 1));
    queue.complete(chain, 0).unwrap();
    // One direct descriptor, then the table; the write flag on the reference means nothing.
    ring.set_desc(1, Desc { flags: Desc::NEXT, next: 2, ..readable() });
    ring.set_desc(2, Desc { addr: DATA + 0x8000, len: 32, flags: Desc::INDIRECT | Desc::WRITE, next: 0 });
    ring.publish(1);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!((chain.readable().len(), chain.writable().len()), (2, 1));
}

#[test]
fn chains_of_all_kinds_are_the_same_the_first_time_and_later() {
    let Setup { mut queue, mut ring, .. } = setup(16);
    let high = Segment { addr: GuestAddress(RAM + 0x1_0000), len: 8 };
    let chains = [
        vec![readable()],
        vec![writable()],
        vec![readable(), readable(), writable()],
        vec![Desc::readable(high), writable()],
        vec![readable(), Desc::writable(high), writable()],
        vec![readable(); 15],
    ];
    // Storage is used again from the second round on.
    for round in 0..3 {
        for (chain, indirect) in chains.iter().flat_map(|chain| [(chain, false), (chain, true)]) {
            if indirect {
                ring.offer_indirect(1, DATA + 0x8000, chain);
            } else {
                ring.offer(1, chain);
            }
            let popped = queue.pop().unwrap().unwrap();
            let of = |flag| chain.iter().filter(move |desc| desc.flags & Desc::WRITE == flag);
            let segments = |flag| -> Vec<_> {
                of(flag).map(|desc| Segment { addr: GuestAddress(desc.addr), len: desc.len }).collect()
            };
            let len = |flag| of(flag).map(|desc| desc.len).sum::<u32>();
            assert_eq!(popped.readable(), segments(0), "round {round}: {chain:?}");
            assert_eq!(popped.writable(), segments(Desc::WRITE), "round {round}: {chain:?}");
            assert_eq!((popped.readable_len(), popped.writable_len()), (len(0), len(Desc::WRITE)));
            queue.complete(popped, 0).unwrap();
            queue.flush().unwrap();
            assert_eq!(ring.take_used(), Some(Used { head: 1, len: 0 }));
        }
    }
}

#[test]
fn used_elements_are_marked_as_dirty_once_they_are_published() {
    let ram = Ram::new(&RamConfig::new(RAM)).unwrap();
    let mut ring = GuestRing::new(ram.dma(), 0x1000, 8, 0);
    // The flags and the index end a page, the elements are on the next one.
    ring.used = 0x7ffc;
    let mut queue = set_up(&ring, ram.dma(), 0, event()).build().unwrap();
    ring.offer(0, &[writable()]);
    let chain = queue.pop().unwrap().unwrap();
    let mut log = DirtyLog::start(&ram).unwrap();
    queue.complete(chain, 1).unwrap();
    queue.flush().unwrap();
    assert!(log.take().ranges().eq(std::iter::once(0x7000..0x9000)));
}

#[test]
fn chains_and_indirect_tables_may_lie_across_regions() {
    let dma = guest_ram(&[(0, RAM as usize), (RAM, 0x1_0000), (RAM + 0x2_0000, 0x1_0000)]);
    let mut ring = GuestRing::new(dma.clone(), 0x1000, 8, 0);
    let mut queue = set_up(&ring, dma, 0, event()).build().unwrap();
    let segment = |addr, len| Segment { addr: GuestAddress(addr), len };
    let segments = [segment(0x8000, 16), segment(RAM - 8, 16), segment(RAM + 0x2_0000, 0x1_0000), data(0, 1)];
    let descs = segments.map(Desc::writable);
    ring.offer(0, &descs);
    // The second descriptor of the table lies half in one region and half in the next.
    ring.offer_indirect(4, RAM - 24, &descs);
    for head in [0, 4] {
        let chain = queue.pop().unwrap().unwrap();
        assert_eq!((chain.head(), chain.writable()), (head, &segments[..]));
        queue.complete(chain, 0).unwrap();
    }
}

#[test]
fn unpopped_chains_come_again_in_their_order() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    for head in 0..3 {
        ring.offer(head, &[writable()]);
    }
    let first = queue.pop().unwrap().unwrap();
    let second = queue.pop().unwrap().unwrap();
    queue.unpop(second);
    queue.unpop(first);
    let heads: Vec<_> = std::iter::from_fn(|| queue.pop().unwrap()).map(|chain| chain.head()).collect();
    assert_eq!(heads, [0, 1, 2]);
}

#[test]
fn a_request_for_kicks_does_not_count_what_was_given_back() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(0, &[writable()]);
    let chain = queue.pop().unwrap().unwrap();
    queue.unpop(chain);
    assert!(!queue.enable_kicks().unwrap());
    ring.offer(1, &[writable()]);
    assert!(queue.enable_kicks().unwrap());
}

#[test]
fn flags_steer_kicks_and_interrupts_without_event_idx() {
    let Setup { mut queue, mut ring, irq } = setup(8);
    queue.disable_kicks().unwrap();
    assert!(ring.no_notify());
    assert!(!queue.enable_kicks().unwrap());
    assert!(!ring.no_notify());
    ring.set_no_interrupt(true);
    ring.offer(0, &[writable()]);
    let chain = queue.pop().unwrap().unwrap();
    queue.complete(chain, 1).unwrap();
    queue.flush().unwrap();
    assert_eq!((ring.used_index(), irq.take().unwrap()), (1, 0));
}

#[test]
fn event_idx_interrupts_once_when_a_batch_passes_the_event() {
    // For each place of the event relative to a batch of three, also where the indices wrap.
    for start in [0u16, 65533, 65535] {
        for event in 0..5u16 {
            let Setup { mut queue, mut ring, irq } = setup_at(8, start, true);
            ring.set_used_event(start.wrapping_add(event));
            for head in 0..3 {
                ring.offer(head, &[writable()]);
                let chain = queue.pop().unwrap().unwrap();
                queue.complete(chain, 0).unwrap();
            }
            queue.flush().unwrap();
            assert_eq!(irq.take().unwrap(), u64::from(event < 3), "start {start} event {event}");
        }
    }
}

#[test]
fn event_idx_asks_for_a_kick_at_the_next_chain() {
    let Setup { mut queue, mut ring, .. } = setup_at(8, 65535, true);
    for head in 0..2 {
        ring.offer(head, &[writable()]);
        let _held = queue.pop().unwrap().unwrap();
    }
    assert!(!queue.enable_kicks().unwrap());
    assert_eq!(ring.avail_event(), 1);
    let old = ring.avail_index();
    ring.offer(2, &[writable()]);
    assert!(ring.wants_kick(old, true));
    assert!(queue.enable_kicks().unwrap());
}

#[test]
fn the_ring_wraps_at_65535() {
    let Setup { mut queue, mut ring, .. } = setup_at(2, 65000, true);
    for round in 0..2000u32 {
        let head = (round % 2) as u16;
        ring.offer(head, &[writable()]);
        let chain = queue.pop().unwrap().unwrap();
        assert!(!queue.enable_kicks().unwrap());
        queue.complete(chain, round % 32).unwrap();
        queue.flush().unwrap();
        assert_eq!(ring.take_used(), Some(Used { head: head.into(), len: round % 32 }));
    }
    assert!(ring.used_index() < 65000);
}

#[test]
fn completion_may_come_in_any_order() {
    let Setup { mut queue, mut ring, .. } = setup(4);
    for head in 0..4 {
        ring.offer(head, &[writable()]);
    }
    let mut chains: Vec<_> = std::iter::from_fn(|| queue.pop().unwrap()).collect();
    assert_eq!(queue.in_flight(), 4);
    while let Some(chain) = chains.pop() {
        queue.complete(chain, 0).unwrap();
    }
    queue.flush().unwrap();
    assert_eq!(queue.in_flight(), 0);
    let heads: Vec<_> = std::iter::from_fn(|| ring.take_used()).map(|used| used.head).collect();
    assert_eq!(heads, [3, 2, 1, 0]);
}

#[test]
fn a_queue_needs_a_right_size_alignment_and_ram() {
    let dma = guest_ram(&[(0, RAM as usize)]);
    let good = set_up(&GuestRing::new(dma.clone(), 0x1000, 8, 0), dma, 0, event());
    assert!(good.check().is_ok());
    let with = |state| QueueSetup { state, ..good.clone() };
    let state = good.state;
    for bad in [
        QueueState { size: 0, ..state },
        QueueState { size: 7, ..state },
        QueueState { size: 512, ..state },
        QueueState { desc: state.desc + 8, ..state },
        QueueState { avail: state.avail + 1, ..state },
        QueueState { used: state.used + 2, ..state },
    ] {
        assert!(matches!(with(bad).check(), Err(QueueSetupError::Invalid { .. })), "{bad:?}");
    }
    for addr in [RAM - 16, RAM, u64::MAX - 15] {
        for bad in [
            QueueState { desc: addr, ..state },
            QueueState { avail: addr, ..state },
            QueueState { used: addr, ..state },
        ] {
            assert!(matches!(with(bad).check(), Err(QueueSetupError::NotRam { .. })), "{bad:?}");
            assert!(with(bad).build().is_err());
        }
    }
}

#[test]
fn a_queue_follows_memory_that_comes_and_goes() {
    let ram = Ram::new(&RamConfig::new(1 << 20)).unwrap();
    let add = |addr| ram.add_slot(addr, 1 << 20, &Backing::Anonymous).unwrap();
    let (with_ring, addr) = (add(16 << 20), 17 << 20);
    let mut ring = GuestRing::new(ram.dma(), 16 << 20, 8, 0);
    let mut queue = set_up(&ring, ram.dma(), 0, event()).build().unwrap();
    assert!(queue.pop().unwrap().is_none());
    // A buffer in memory that was not there when the queue started.
    let with_buffer = add(addr);
    let buffer = Desc::writable(Segment { addr: GuestAddress(addr), len: 16 });
    ring.offer(0, &[buffer]);
    let chain = queue.pop().unwrap().unwrap();
    queue.dma().write(GuestAddress(addr), &[1; 16]).unwrap();
    queue.complete(chain, 16).unwrap();
    queue.flush().unwrap();
    assert_eq!(ring.take_used(), Some(Used { head: 0, len: 16 }));
    ram.remove_slot(with_buffer).unwrap();
    ring.offer(1, &[buffer]);
    broke(&mut queue, QueueBroken::NotRam { addr, len: 16 });

    let mut queue = set_up(&ring, ram.dma(), 2, event()).build().unwrap();
    ram.remove_slot(with_ring).unwrap();
    broke(&mut queue, QueueBroken::Rings);
}

#[test]
fn d2_indices_are_no_further_apart_than_the_queue_is_large() {
    let dma = guest_ram(&[(0, RAM as usize)]);
    let good = set_up(&GuestRing::new(dma.clone(), 0x1000, 8, 0), dma, 0, event());
    for (next_avail, next_used, is_one) in
        [(0, 0, true), (8, 0, true), (9, 0, false), (0, 1, false), (3, u16::MAX, true), (u16::MAX, 3, false)]
    {
        let state = QueueState { next_avail, next_used, ..good.state };
        let result = QueueSetup { state, ..good.clone() }.check();
        assert_eq!(result.is_ok(), is_one, "{result:?}");
    }
}

#[test]
fn a_stopped_queue_is_described_and_goes_on_from_there() {
    for event_idx in [false, true] {
        let Setup { mut queue, mut ring, irq } = setup_at(8, u16::MAX - 1, event_idx);
        for head in [0, 1, 2, 3] {
            ring.offer(head, &[writable()]);
        }
        let (one, two) = (queue.pop().unwrap().unwrap(), queue.pop().unwrap().unwrap());
        queue.complete(one, 1).unwrap();
        ring.set_used_event(u16::MAX - 1);
        // What was given back counts as not taken, what was completed is published.
        queue.unpop(two);
        let setup = set_up(&ring, queue.dma().clone(), 0, irq.clone());
        let state = queue.into_state();
        assert_eq!(irq.take().unwrap(), 1);
        assert_eq!(ring.take_used().map(|used| used.head), Some(0));
        let expected = QueueState::new(8).at(ring.desc, ring.avail, ring.used).from_index(u16::MAX);
        assert_eq!(state, expected);
        let mut queue = QueueSetup { state, ..setup }.build().unwrap();
        for head in [1, 2, 3] {
            let chain = queue.pop().unwrap().unwrap();
            assert_eq!(chain.head(), head);
            queue.complete(chain, 0).unwrap();
        }
        queue.flush().unwrap();
        assert_eq!(std::iter::from_fn(|| ring.take_used()).count(), 3);
        assert_eq!(queue.into_state(), QueueState { next_avail: 2, next_used: 2, ..state });
    }
}

#[test]
fn what_is_in_flight_when_a_queue_stops_stays_taken() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(0, &[writable()]);
    let held = queue.pop().unwrap().unwrap();
    let state = queue.into_state();
    assert_eq!((state.next_avail, state.next_used, state.ready), (1, 0, true));
    drop(held);
}

#[test]
fn a_broken_queue_is_not_ready_when_it_has_stopped() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.publish(8);
    assert!(queue.pop().is_err());
    let state = queue.into_state();
    assert_eq!((state.ready, state.next_avail, state.next_used, state.size), (false, 0, 0, 8));
}

#[test]
fn a2_a_head_is_offered_again_before_it_is_given_back() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(5, &[writable()]);
    ring.publish(5);
    let held = queue.pop().unwrap().unwrap();
    broke(&mut queue, QueueBroken::HeadInFlight { head: 5 });
    assert!(queue.complete(held, 0).is_err());
    assert_eq!(ring.used_index(), 0);
}

#[test]
fn a3_the_available_index_jumps() {
    for start in [0u16, 65530] {
        for jump in [9u16, 100, 32768, 65535, 65528] {
            let Setup { mut queue, mut ring, .. } = setup_at(8, start, false);
            let index = start.wrapping_add(jump);
            ring.set_avail_index(index);
            let why = QueueBroken::AvailIndex { index, next: start, in_flight: 0, size: 8 };
            broke(&mut queue, why);
        }
    }
}

#[test]
fn a3_the_available_index_goes_back_behind_what_is_in_flight() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    for head in 0..4 {
        ring.offer(head, &[writable()]);
        let _held = queue.pop().unwrap().unwrap();
    }
    ring.set_avail_index(2);
    assert_eq!(
        queue.enable_kicks(),
        Err(QueueBroken::AvailIndex { index: 2, next: 4, in_flight: 4, size: 8 })
    );
}

#[test]
fn a4_next_loops() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.set_desc(0, Desc { flags: Desc::NEXT, next: 1, ..readable() });
    ring.set_desc(1, Desc { flags: Desc::NEXT, next: 0, ..readable() });
    ring.publish(0);
    broke(&mut queue, QueueBroken::ChainLength { size: 8 });
}

#[test]
fn a4_next_loops_in_an_indirect_table() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer_indirect(0, DATA, &[readable(), readable()]);
    ring.set_desc_at(DATA + 16, Desc { flags: Desc::NEXT, next: 0, ..readable() });
    broke(&mut queue, QueueBroken::ChainLength { size: 8 });
}

#[test]
fn a4_next_or_head_outside_the_table() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.publish(8);
    broke(&mut queue, QueueBroken::Head { head: 8, size: 8 });
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.set_desc(0, Desc { flags: Desc::NEXT, next: 8, ..readable() });
    ring.publish(0);
    broke(&mut queue, QueueBroken::Next { next: 8, len: 8 });
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer_indirect(0, DATA, &[readable(), readable()]);
    ring.set_desc_at(DATA, Desc { flags: Desc::NEXT, next: 2, ..readable() });
    broke(&mut queue, QueueBroken::Next { next: 2, len: 2 });
}

#[test]
fn a4_chain_longer_than_the_queue_across_an_indirect_table() {
    let Setup { mut queue, mut ring, .. } = setup(4);
    ring.offer_indirect(1, DATA, &[readable(); 4]);
    assert_eq!(queue.pop().unwrap().unwrap().readable().len(), 4);
    ring.set_desc(0, Desc { flags: Desc::NEXT, next: 2, ..readable() });
    ring.set_desc(2, Desc { addr: DATA, len: 64, flags: Desc::INDIRECT, next: 0 });
    ring.publish(0);
    broke(&mut queue, QueueBroken::ChainLength { size: 4 });
}

#[test]
fn a4_indirect_in_indirect() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer_indirect(0, DATA, &[readable(), Desc { flags: Desc::INDIRECT, ..readable() }]);
    broke(&mut queue, QueueBroken::Indirect);
}

#[test]
fn a4_indirect_with_next() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.set_desc(0, Desc { addr: DATA, len: 16, flags: Desc::INDIRECT | Desc::NEXT, next: 1 });
    ring.publish(0);
    broke(&mut queue, QueueBroken::Indirect);
}

#[test]
fn a4_indirect_not_negotiated() {
    let Setup { queue, mut ring, irq } = setup(8);
    let mut queue = set_up(&ring, queue.dma().clone(), 0, irq).with_features(0).build().unwrap();
    ring.offer_indirect(0, DATA, &[readable()]);
    broke(&mut queue, QueueBroken::Indirect);
}

#[test]
fn a4_indirect_table_of_a_wrong_length() {
    for len in [0, 8, 17, 16 * 9, 16 * 65536, u32::MAX, u32::MAX - 15] {
        let Setup { mut queue, mut ring, .. } = setup(8);
        ring.set_desc(0, Desc { addr: DATA, len, flags: Desc::INDIRECT, next: 0 });
        ring.publish(0);
        broke(&mut queue, QueueBroken::IndirectTable { len });
    }
}

#[test]
fn a4_indirect_table_outside_ram() {
    for addr in [RAM, RAM - 16, u64::MAX - 31, u64::MAX - 15] {
        let Setup { mut queue, mut ring, .. } = setup(8);
        ring.set_desc(0, Desc { addr, len: 32, flags: Desc::INDIRECT, next: 0 });
        ring.publish(0);
        broke(&mut queue, QueueBroken::NotRam { addr, len: 32 });
    }
}

#[test]
fn a4_readable_after_writable() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(0, &[writable(), readable()]);
    broke(&mut queue, QueueBroken::Order);
}

#[test]
fn a4_zero_length() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(0, &[readable(), Desc { len: 0, ..writable() }]);
    broke(&mut queue, QueueBroken::EmptyDescriptor);
}

#[test]
fn a4_buffers_outside_ram() {
    // Past the end, wrapping, across the hole, and inside it.
    let hostile = [
        (RAM + 0x2_0000, 1),
        (u64::MAX, 2),
        (u64::MAX - 3, 4),
        (RAM - 1, 0x1_0002),
        (RAM, 4),
        (DATA, u32::MAX),
    ];
    for (addr, len) in hostile {
        let Setup { mut queue, mut ring, .. } = setup(8);
        ring.offer(0, &[Desc { addr, len, flags: Desc::WRITE, next: 0 }]);
        broke(&mut queue, QueueBroken::NotRam { addr, len });
    }
}

#[test]
fn a4_more_than_4_gib_in_one_chain() {
    // 16 times the same 512 MiB: RAM that is never touched.
    let dma = guest_ram(&[(0, 0x2010_0000)]);
    let mut ring = GuestRing::new(dma.clone(), 0x1000, 16, 0);
    let mut queue = set_up(&ring, dma, 0, event()).build().unwrap();
    let big = Desc { addr: RAM, len: 0x2000_0000, flags: 0, next: 0 };
    ring.offer(0, &[&[big; 4][..], &[Desc { flags: Desc::WRITE, ..big }; 4]].concat());
    broke(&mut queue, QueueBroken::ChainBytes);
}

#[test]
fn a8_the_same_descriptor_for_ever_is_bounded_by_the_queue() {
    let Setup { mut queue, mut ring, .. } = setup(4);
    let mut popped = 0;
    // Completed, but never published: the driver has no right to offer it again.
    let why = loop {
        ring.offer(0, &[writable()]);
        match queue.pop() {
            Ok(Some(chain)) => queue.complete(chain, 0).unwrap(),
            Ok(None) => continue,
            Err(why) => break why,
        }
        popped += 1;
    };
    assert_eq!(popped, 4);
    assert_eq!(why, QueueBroken::AvailIndex { index: 5, next: 4, in_flight: 4, size: 4 });
}

#[test]
fn a10_the_used_length_never_exceeds_the_writable_part() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(0, &[readable(), writable()]);
    let chain = queue.pop().unwrap().unwrap();
    queue.complete(chain, 33).unwrap();
    queue.flush().unwrap();
    assert_eq!(ring.take_used(), Some(Used { head: 0, len: 32 }));
}

#[test]
fn a16_a_descriptor_rewritten_after_the_pop_changes_nothing() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    ring.offer(0, &[writable()]);
    let chain = queue.pop().unwrap().unwrap();
    ring.set_desc(0, Desc { addr: u64::MAX, len: u32::MAX, flags: Desc::NEXT, next: 7 });
    assert_eq!(chain.writable(), [data(1, 32)]);
    queue.unpop(chain);
    let chain = queue.pop().unwrap().unwrap();
    assert_eq!(chain.writable(), [data(1, 32)]);
    queue.complete(chain, 32).unwrap();
}

#[test]
fn a_chain_of_another_queue_is_not_completed() {
    let Setup { mut queue, .. } = setup(8);
    let mut other = setup(8);
    other.ring.offer(0, &[writable()]);
    let chain = other.queue.pop().unwrap().unwrap();
    assert_eq!(queue.complete(chain, 0), Err(QueueBroken::NotInFlight { head: 0 }));
}

#[test]
fn storage_is_reused() {
    let Setup { mut queue, mut ring, .. } = setup(8);
    let mut places = Vec::new();
    for _ in 0..16 {
        ring.offer(0, &[readable(), writable()]);
        let chain = queue.pop().unwrap().unwrap();
        places.push(chain.readable().as_ptr());
        queue.complete(chain, 0).unwrap();
        queue.flush().unwrap();
    }
    places.dedup();
    assert_eq!(places.len(), 1);
}

#[test]
fn storage_of_long_chains_is_not_kept_for_each_head() {
    let Setup { mut queue, mut ring, .. } = setup(32);
    for head in 0..32 {
        ring.offer_indirect(head, DATA + 0x8000, &[readable(); 32]);
    }
    let chains: Vec<_> = std::iter::from_fn(|| queue.pop().unwrap()).collect();
    assert_eq!(chains.iter().filter(|chain| chain.0.is_large()).count(), 32);
    chains.into_iter().for_each(|chain| queue.complete(chain, 0).unwrap());
    queue.flush().unwrap();
    assert_eq!(queue.spares.iter().filter(|spare| spare.is_large()).count(), LARGE_SPARES);
    // Nor does a short chain keep what a long one has left to it, once it is asked to.
    ring.offer(0, &[readable(), writable()]);
    let mut chain = queue.pop().unwrap().unwrap();
    let parts = (chain.readable().to_vec(), chain.writable().to_vec());
    assert!(chain.0.is_large());
    chain.shrink();
    assert!(!chain.0.is_large());
    assert_eq!(parts, (chain.readable().to_vec(), chain.writable().to_vec()));
    queue.complete(chain, 0).unwrap();
}

/// What a driver may do, mostly nonsense.
#[derive(Clone, Debug)]
enum Step {
    Desc(u16, Desc),
    Publish(u16),
    Index(u16),
    Pop,
    Complete(usize, u32),
    Unpop,
    Flush,
    Park,
}

fn step() -> impl Strategy<Value = Step> {
    let addr = prop_oneof![4 => DATA..DATA + 0x100, 1 => any::<u64>()];
    let len = prop_oneof![4 => 1..64u32, 1 => any::<u32>()];
    let desc = (addr, len, 0..8u16, 0..10u16);
    let desc = desc.prop_map(|(addr, len, flags, next)| Desc { addr, len, flags, next });
    prop_oneof![
        3 => (0..8u16, desc).prop_map(|(i, desc)| Step::Desc(i, desc)),
        4 => (0..8u16).prop_map(Step::Publish),
        1 => any::<u16>().prop_map(Step::Index),
        4 => Just(Step::Pop),
        4 => (0..8usize, any::<u32>()).prop_map(|(i, written)| Step::Complete(i, written)),
        1 => Just(Step::Unpop),
        2 => Just(Step::Flush),
        1 => Just(Step::Park),
    ]
}

proptest! {
    #[test]
    fn any_driver_is_survived(
        start: u16,
        event_idx: bool,
        steps in proptest::collection::vec(step(), 1..80),
    ) {
        let Setup { mut queue, mut ring, .. } = setup_at(8, start, event_idx);
        let mut held: Vec<Chain> = Vec::new();
        for step in steps {
            let before = queue.broken();
            let result = match step {
                Step::Desc(i, desc) => { ring.set_desc(i, desc); Ok(()) }
                Step::Publish(head) => { ring.publish(head); Ok(()) }
                Step::Index(index) => { ring.set_avail_index(index); Ok(()) }
                Step::Pop => queue.pop().map(|chain| held.extend(chain)),
                Step::Complete(i, written) if i < held.len() => queue.complete(held.remove(i), written),
                Step::Complete(..) => Ok(()),
                Step::Unpop => { held.pop().into_iter().for_each(|chain| queue.unpop(chain)); Ok(()) }
                Step::Flush => queue.flush(),
                Step::Park => queue.enable_kicks().map(drop),
            };
            prop_assert_eq!(result.err().or(before), queue.broken());
            prop_assert!(before.is_none() || queue.broken() == before);
            prop_assert!(queue.in_flight() <= queue.size() || queue.broken().is_some());
            for chain in &held {
                let total = chain.readable().len() + chain.writable().len();
                prop_assert!((1..=8).contains(&total));
            }
        }
    }
}
