//! The driver's part in a queue: buffers, chains, kicks, and what comes back.

use ossature_memory::Segment;
use ossature_memory::vm_memory::GuestAddress;

use super::{BUFFERS, TestDriver};
use crate::features::EVENT_IDX;
use crate::testing::{Desc, GuestRing, Used};

/// A chain that [`TestDriver::request`] has offered.
#[derive(Clone, Debug)]
pub struct Request {
    /// Its head.
    pub head: u16,
    /// Where the device may write.
    pub writable: Vec<Segment>,
}

impl TestDriver {
    /// A queue's ring, to do with as the test wants.
    pub fn ring(&mut self, queue: u16) -> &mut GuestRing {
        &mut self.queues.get_mut(&queue).expect("a queue that was set up").ring
    }

    /// Guest memory for a buffer: valid for as long as the next 32 MiB of buffers are not asked for.
    pub fn buffer(&mut self, len: u32) -> Segment {
        let room = BUFFERS.end - BUFFERS.start;
        assert!(u64::from(len) <= room, "a buffer of {len}");
        if self.next_buffer + u64::from(len) > BUFFERS.end {
            self.next_buffer = BUFFERS.start;
        }
        let addr = GuestAddress(self.next_buffer);
        self.next_buffer = (addr.0 + u64::from(len)).next_multiple_of(16);
        Segment { addr, len }
    }

    /// Guest memory that holds `bytes`.
    pub fn buffer_with(&mut self, bytes: &[u8]) -> Segment {
        let segment = self.buffer(bytes.len() as u32);
        self.dma.write(segment.addr, bytes).expect("buffers are RAM");
        segment
    }

    /// The bytes of `segments`.
    pub fn bytes(&self, segments: &[Segment]) -> Vec<u8> {
        let mut all = Vec::new();
        for segment in segments {
            let start = all.len();
            all.resize(start + segment.len as usize, 0);
            self.dma.read(segment.addr, &mut all[start..]).expect("buffers are RAM");
        }
        all
    }

    /// Offers a chain of `readable` and then of buffers of the lengths `writable`.
    pub fn request(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Request {
        let readable: Vec<_> = readable.iter().map(|bytes| self.buffer_with(bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|&len| self.buffer(len)).collect();
        let descs =
            readable.iter().map(|&s| Desc::readable(s)).chain(writable.iter().map(|&s| Desc::writable(s)));
        let head = self.offer(queue, &descs.collect::<Vec<_>>());
        Request { head, writable }
    }

    /// As [`request`](Self::request), through an indirect table.
    pub fn request_indirect(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> Request {
        let readable: Vec<_> = readable.iter().map(|bytes| self.buffer_with(bytes)).collect();
        let writable: Vec<_> = writable.iter().map(|&len| self.buffer(len)).collect();
        let descs =
            readable.iter().map(|&s| Desc::readable(s)).chain(writable.iter().map(|&s| Desc::writable(s)));
        let descs = Desc::link(&descs.collect::<Vec<_>>(), 0);
        let table = self.buffer(16 * descs.len() as u32);
        for (i, desc) in descs.iter().enumerate() {
            self.ring(queue).set_desc_at(table.addr.0 + 16 * i as u64, *desc);
        }
        let head = self.offer(queue, &[Desc { flags: Desc::INDIRECT, ..Desc::readable(table) }]);
        Request { head, writable }
    }

    /// Offers a chain of `descs`, linked, in free descriptors; its head.
    pub fn offer(&mut self, queue: u16, descs: &[Desc]) -> u16 {
        let state = self.queues.get_mut(&queue).expect("a queue that was set up");
        let rest = state.free.len().checked_sub(descs.len()).expect("free descriptors");
        let taken: Vec<u16> = state.free.drain(rest..).rev().collect();
        for (i, desc) in descs.iter().enumerate() {
            let link = taken.get(i + 1).map_or(*desc, |&next| Desc {
                flags: desc.flags | Desc::NEXT,
                next,
                ..*desc
            });
            state.ring.set_desc(taken[i], link);
        }
        let head = taken[0];
        state.ring.publish(head);
        state.chains.insert(head, taken);
        head
    }

    /// Kicks the queue if the device wants to be: through the doorbell, as the host kernel would. Then pumps.
    pub fn kick(&mut self, queue: u16) {
        let event_idx = self.features & EVENT_IDX != 0;
        let state = self.queues.get_mut(&queue).expect("a queue that was set up");
        let old = std::mem::replace(&mut state.kicked_at, state.ring.avail_index());
        if state.ring.wants_kick(old, event_idx) {
            self.doorbell(queue).signal().expect("an event");
        }
        self.pump();
    }

    /// The next chain that the device gave back.
    pub fn used(&mut self, queue: u16) -> Option<Used> {
        let state = self.queues.get_mut(&queue).expect("a queue that was set up");
        let used = state.ring.take_used()?;
        let chain = u16::try_from(used.head).ok().and_then(|head| state.chains.remove(&head));
        state.free.extend(chain.into_iter().flatten());
        Some(used)
    }

    /// Waits for the device to give a chain back, by its interrupt.
    pub fn wait_used(&mut self, queue: u16) -> Used {
        loop {
            // Asks for an interrupt, then looks again: the other order would miss one.
            let next = self.ring(queue).next_used();
            self.ring(queue).set_used_event(next);
            self.pump();
            if let Some(used) = self.used(queue) {
                return used;
            }
            self.wait_interrupt();
        }
    }

    /// Offers a chain, kicks, and waits until it comes back: the used element and what the device wrote.
    pub fn transact(&mut self, queue: u16, readable: &[&[u8]], writable: &[u32]) -> (Used, Vec<u8>) {
        let request = self.request(queue, readable, writable);
        self.kick(queue);
        let used = self.wait_used(queue);
        assert_eq!(used.head, u32::from(request.head), "another chain came back");
        let mut bytes = self.bytes(&request.writable);
        bytes.truncate(used.len as usize);
        (used, bytes)
    }
}
