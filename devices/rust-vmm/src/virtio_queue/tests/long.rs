//! A driver that lets each of its chains be as long as the queue, all by the same indirect table.

use std::sync::Arc;

use ::virtio_queue::{Queue, QueueT};
use ossature_bus::Event;
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Dma, GuestMmap, Segment};
use ossature_virtio::testing::{Desc, GuestRing, guest_ram};
use ossature_virtio::{
    Activation, QueueSetup, QueueState, Removed, Source, Turn, VirtQueue, Worker, features,
};

use crate::virtio_queue::shadow::Shadow;
use crate::virtio_queue::{HandlerError, QueueHandler, QueueWorker, Queues};

const SIZE: u16 = 1024;
/// How many long chains are with the device at once.
const TABLES: usize = 32;
const TABLE: u64 = 0x4_0000;
const BUFFER: Segment = Segment { addr: GuestAddress(0x8_0000), len: 1 };

/// Takes what it finds, and is done with the first one in each turn of [`DONE`].
#[derive(Default)]
struct Keeps(Vec<(u16, usize)>);

const DONE: u16 = 9;

impl QueueHandler for Keeps {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn process(
        &mut self,
        token: u16,
        queues: &mut Queues,
        memory: &Arc<GuestMmap>,
    ) -> Result<(), HandlerError> {
        let Some(queue) = queues.get(0) else { return Ok(()) };
        while let Some(chain) = queue.pop_descriptor_chain(&**memory) {
            self.0.push((chain.head_index(), chain.count()));
        }
        let long = self.0.iter().filter(|(_, count)| *count > 8).count();
        assert!(long <= TABLES, "{long} are with the device");
        if token == DONE && !self.0.is_empty() {
            let (head, count) = self.0.remove(0);
            queue.add_used(&**memory, head, count as u32)?;
        }
        Ok(())
    }

    fn stop_queue(&mut self, _: u16, queue: &mut Queue, memory: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        for (head, _) in self.0.drain(..) {
            queue.add_used(&**memory, head, 0)?;
        }
        Ok(())
    }
}

fn queue(dma: &Dma) -> (GuestRing, VirtQueue) {
    let ring = GuestRing::new(dma.clone(), 0x1000, SIZE, 0);
    let event = || Arc::new(Event::new().unwrap());
    let state = QueueState::new(SIZE).at(ring.desc, ring.avail, ring.used);
    let setup = QueueSetup::new(0, state, dma.clone(), event(), event().into());
    (ring, setup.with_features(features::INDIRECT_DESC).build().unwrap())
}

fn settle(worker: &mut impl Worker, token: u16) {
    let mut turns = 0;
    let mut turn = worker.turn(token).unwrap();
    while turn == Turn::Again {
        turns += 1;
        assert!(turns < 100, "it does not come to rest");
        turn = worker.turn(0).unwrap();
    }
}

#[test]
fn a_driver_can_make_a_rings_memory_as_large_as_is_documented_and_no_larger() {
    for (size, limit) in
        [(1, 13 << 10), (16, 13 << 10), (256, 7 * (1 << 20) / 10), (1024, 1 << 20), (1 << 15, 13 << 20)]
    {
        let len = Shadow::new(0, size).unwrap().mapped_len();
        assert!(len <= limit, "{size}: {len}");
    }
}

#[test]
fn long_chains_wait_for_room_and_all_get_through() {
    let dma = guest_ram(&[(0, 1 << 20)]);
    let (mut ring, queue) = queue(&dma);
    let mut worker = QueueWorker::new(Keeps::default(), &Activation::new(0, dma));
    worker.add_queue(queue);
    // Every eighth one is short, and waits for none but those in front of it.
    let is_short = |head: u16| head % 8 == 7;
    let all = Desc::link(&[Desc::writable(BUFFER); SIZE as usize], 0);
    for (i, desc) in all.iter().enumerate() {
        ring.set_desc_at(TABLE + 16 * i as u64, *desc);
    }
    for head in 0..SIZE {
        let table = Segment { addr: GuestAddress(TABLE), len: 16 * u32::from(SIZE) };
        let desc = Desc { flags: Desc::INDIRECT, ..Desc::readable(table) };
        ring.offer(head, &[if is_short(head) { Desc::writable(BUFFER) } else { desc }]);
    }
    settle(&mut worker, 0);
    let mut got = 0;
    // Nobody kicks from here on.
    for _ in 0..SIZE {
        settle(&mut worker, DONE);
        while let Some(used) = ring.take_used() {
            let len = if is_short(got) { 1 } else { u32::from(SIZE) };
            assert_eq!((used.head as u16, used.len), (got, len));
            got += 1;
        }
    }
    assert_eq!(got, SIZE);
}

#[test]
fn a_queue_stops_while_chains_wait_for_room() {
    let dma = guest_ram(&[(0, 1 << 20)]);
    let (mut ring, queue) = queue(&dma);
    let mut worker = QueueWorker::new(Keeps::default(), &Activation::new(0, dma));
    worker.add_queue(queue);
    for head in 0..SIZE {
        let table = [Desc::writable(BUFFER); 9];
        ring.offer_indirect(head, TABLE, &table);
    }
    settle(&mut worker, 0);
    let Removed::Queue(mut queue) = worker.remove_queue(0) else { panic!("it drains") };
    let used = std::iter::from_fn(|| ring.take_used()).count();
    assert_eq!(used, TABLES);
    // The next owner of the queue gets them in their order.
    for head in used as u16..SIZE {
        assert_eq!(queue.pop().unwrap().unwrap().head(), head);
    }
    assert!(queue.pop().unwrap().is_none());
}
