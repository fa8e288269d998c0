//! Packets to the guest: read straight into the buffers that the driver has posted.

use std::collections::VecDeque;
use std::io;

use ossature_bus::{EventSink, Throttle};
use ossature_memory::{DmaIoError, Segment, Segments};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};

use super::capture::Capture;
use super::counters::Counters;
use super::filter::{Filter, LOOK};
use super::header::{HEADER_LEN, MAX_PACKET, NUM_BUFFERS};
use super::io::NetIo;
use super::shared::{Pair, Shared};
use crate::{Chain, QueueBroken, Turn, VirtQueue};

/// Packets and buffers that a turn takes at most.
const TURN_BUDGET: u32 = 128;
/// Segments after which no further chain is posted: one chain has at most 256 more, and readv(2) takes 1024.
const SEGMENTS_ENOUGH: usize = 512;

/// The receive queue. Chains that were popped ahead wait in `posted` for the next packet, whose length is not
/// known before it is read.
#[derive(Debug)]
pub(super) struct Rx {
    queue: VirtQueue,
    posted: VecDeque<Chain>,
    /// The writable segments of all that is posted, in order, behind `gone` that packets have used.
    segments: Vec<Segment>,
    gone: usize,
    /// The bytes they hold.
    room: u64,
    /// A packet may take several chains.
    merge: bool,
    /// The driver does not know what header flags mean.
    clear_flags: bool,
    features: u128,
    view: View,
}

/// The settings, as far as they are about packets to the guest.
#[derive(Debug)]
struct View {
    generation: u32,
    /// The driver uses this pair of queues.
    active: bool,
    link_down: bool,
    mac: [u8; 6],
    /// None where all packets pass.
    filter: Option<Filter>,
}

impl Rx {
    pub(super) fn new(queue: VirtQueue, features: u128) -> Self {
        let view = View { generation: 0, active: false, link_down: false, mac: [0; 6], filter: None };
        Self {
            queue,
            posted: VecDeque::new(),
            segments: Vec::new(),
            gone: 0,
            room: 0,
            merge: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            clear_flags: features & 1 << VIRTIO_NET_F_GUEST_CSUM == 0,
            features,
            view,
        }
    }

    /// Takes the packets of the pair of queues `number` until none waits, no buffer is left, or the budget is used up.
    pub(super) fn run(
        &mut self,
        with: &Shared<impl NetIo>,
        number: u16,
        limit: &Throttle,
    ) -> Result<Turn, QueueBroken> {
        let Shared { card, pairs, events, .. } = with;
        let Some(Pair { io, counters, .. }) = pairs.get(usize::from(number)) else { return Ok(Turn::Sleep) };
        if let Some(settings) = card.news(&mut self.view.generation) {
            self.view.active = number < settings.pairs;
            self.view.link_down = settings.link_down;
            self.view.mac = settings.mac;
            self.view.filter = (!settings.filter.passes_all(self.features)).then(|| settings.filter.clone());
        }
        if !self.view.active {
            return Ok(Turn::Sleep);
        }
        let captured = card.capture.is_on();
        let turn = self.receive(io, counters, events, limit, captured.then_some(&card.capture));
        if captured {
            card.capture.flush(counters, events);
        }
        turn
    }

    fn receive(
        &mut self,
        io: &impl NetIo,
        counters: &Counters,
        events: &EventSink,
        limit: &Throttle,
        capture: Option<&Capture>,
    ) -> Result<Turn, QueueBroken> {
        let mut budget = TURN_BUDGET;
        // While buffers are at hand the driver need not tell us of more.
        self.queue.disable_kicks()?;
        while budget > 0 {
            self.post(&mut budget, counters)?;
            if self.posted.is_empty() {
                self.queue.flush()?;
                // Packets wait without a wake-up of their own from here on: the driver's next kick is the one
                // that goes on.
                if budget > 0 && !self.queue.enable_kicks()? {
                    return Ok(Turn::Sleep);
                }
                budget = budget.saturating_sub(1);
                continue;
            }
            if !limit.is_open() {
                self.queue.flush()?;
                return Ok(Turn::Sleep);
            }
            budget -= 1;
            match io.receive(self.queue.dma(), self.waiting()) {
                Ok(len) => {
                    let len = len as u64;
                    limit.charge(len.saturating_sub(HEADER_LEN as u64));
                    if self.takes(len, counters) {
                        if let Some(capture) = capture {
                            let frame = self.waiting().take(len).skip(HEADER_LEN as u64);
                            capture.note(self.queue.dma(), frame, counters, events);
                        }
                        self.deliver(len, counters)?;
                    }
                }
                Err(e) => {
                    // After a failure too the next packet wakes us: trying again at once would spin.
                    if !matches!(&e, DmaIoError::Io(e) if e.kind() == io::ErrorKind::WouldBlock) {
                        counters.host_errors.note(events, "receive a packet", &e);
                    }
                    self.queue.flush()?;
                    return Ok(Turn::Sleep);
                }
            }
        }
        self.queue.flush()?;
        Ok(Turn::Again)
    }

    /// Returns true if the packet of `len` bytes that lies in the posted chains is for the driver.
    #[inline]
    fn takes(&self, len: u64, counters: &Counters) -> bool {
        if len > self.room || len < HEADER_LEN as u64 || self.view.link_down {
            counters.rx_dropped.add(1);
            return false;
        }
        let Some(filter) = &self.view.filter else { return true };
        let frame = self.waiting().take(len).skip(HEADER_LEN as u64);
        let mut start = [0; LOOK];
        let passes = self.queue.dma().gather(frame, &mut start).is_ok()
            && filter.passes(self.features, self.view.mac, start);
        counters.rx_filtered.add(u64::from(!passes));
        passes
    }

    /// Pops chains until the longest packet fits, or one chain where packets are not merged.
    fn post(&mut self, budget: &mut u32, counters: &Counters) -> Result<(), QueueBroken> {
        while *budget > 0 && self.wants_more() {
            let Some(chain) = self.queue.pop()? else { break };
            let room = u64::from(chain.writable_len());
            if room < HEADER_LEN as u64 {
                // Not before those that are posted: they may yet be given back, and then come again from the first.
                if !self.posted.is_empty() {
                    self.queue.unpop(chain);
                    break;
                }
                *budget -= 1;
                counters.rx_dropped.add(1);
                self.queue.complete(chain, 0)?;
                continue;
            }
            self.room += room;
            if self.gone >= SEGMENTS_ENOUGH {
                // Once for hundreds of packets, which would each move all segments otherwise.
                self.segments.drain(..self.gone);
                self.gone = 0;
            }
            self.segments.extend_from_slice(chain.writable());
            self.posted.push_back(chain);
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        self.posted.is_empty()
            || self.merge
                && self.room < MAX_PACKET
                && self.segments.len() - self.gone < SEGMENTS_ENOUGH
                && !self.queue.is_drained()
    }

    /// What is posted.
    fn waiting(&self) -> Segments<'_> {
        Segments::first_bytes(self.segments.get(self.gone..).unwrap_or_default(), self.room)
    }

    /// Gives the driver the packet of `len` bytes that lies in the posted chains.
    fn deliver(&mut self, len: u64, counters: &Counters) -> Result<(), QueueBroken> {
        let (start, room) = (self.gone, self.room);
        let (mut rest, mut taken) = (len, 0u16);
        while rest != 0 {
            let Some(chain) = self.posted.pop_front() else { break };
            let room = u64::from(chain.writable_len());
            let here = rest.min(room);
            rest -= here;
            taken += 1;
            self.room -= room;
            self.gone += chain.writable().len();
            // No more than the chain's room.
            self.queue.complete(chain, here as u32)?;
        }
        // The driver sees none of this before the flush. The first chain has room for a header, and the queue has
        // found it in RAM.
        let packet = Segments::first_bytes(self.segments.get(start..).unwrap_or_default(), room);
        let mem = self.queue.dma();
        if self.clear_flags {
            let _ = mem.scatter_obj(packet, 0u8);
        }
        let _ = mem.scatter_obj(packet.skip(NUM_BUFFERS), taken.to_le());
        counters.rx_packets.add(1);
        counters.rx_bytes.add(len - HEADER_LEN as u64);
        Ok(())
    }

    /// Gives back what no packet has used, and the queue.
    pub(super) fn finish(mut self) -> VirtQueue {
        while let Some(chain) = self.posted.pop_back() {
            self.queue.unpop(chain);
        }
        self.queue
    }
}
