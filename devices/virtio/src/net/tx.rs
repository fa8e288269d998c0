//! Packets from the guest: each chain goes to the host in one call.

use std::io;

use ossature_bus::{EventSink, Throttle};
use ossature_memory::{DmaIoError, Segments};

use super::capture::Capture;
use super::counters::Counters;
use super::header::{self, ETHERNET_HEADER, HEADER_LEN, MAX_PACKET};
use super::io::{NetIo, Unsent};
use super::shared::{Pair, Shared};
use crate::{QueueBroken, Turn, VirtQueue};

/// Packets that a turn sends at most.
const TURN_PACKETS: u32 = 128;

/// The transmit queue.
#[derive(Debug)]
pub(super) struct Tx {
    queue: VirtQueue,
    features: u128,
    /// The host takes no packet until its descriptor polls writable.
    blocked: bool,
    generation: u32,
    /// Packets, and their bytes, that the host took since it was last told to send them.
    sent: (u64, u64),
    /// Packets go nowhere: the link is down, or the driver does not use this pair of queues.
    down: bool,
}

impl Tx {
    pub(super) fn new(queue: VirtQueue, features: u128) -> Self {
        Self { queue, features, blocked: false, sent: (0, 0), generation: 0, down: false }
    }

    pub(super) fn blocked(&self) -> bool {
        self.blocked
    }

    /// Sends the packets of the pair of queues `number` until none is left, the host takes no more, or the budget is
    /// used up.
    pub(super) fn run(
        &mut self,
        with: &Shared<impl NetIo>,
        number: u16,
        limit: &Throttle,
    ) -> Result<Turn, QueueBroken> {
        let Shared { card, pairs, events, .. } = with;
        let Some(Pair { io, counters, .. }) = pairs.get(usize::from(number)) else { return Ok(Turn::Sleep) };
        if let Some(settings) = card.news(&mut self.generation) {
            self.down = settings.link_down || number >= settings.pairs;
        }
        let captured = card.capture.is_on();
        let turn = self.transmit(io, counters, events, limit, captured.then_some(&card.capture));
        if captured {
            card.capture.flush(counters, events);
        }
        turn
    }

    fn transmit(
        &mut self,
        io: &impl NetIo,
        counters: &Counters,
        events: &EventSink,
        limit: &Throttle,
        capture: Option<&Capture>,
    ) -> Result<Turn, QueueBroken> {
        self.blocked = false;
        self.queue.disable_kicks()?;
        let down = self.down || !io.is_connected();
        let mut budget = TURN_PACKETS;
        loop {
            while let Some(chain) = self.queue.pop()? {
                let packet = Segments::first_bytes(chain.readable(), chain.readable_len().into());
                if !limit.is_open() {
                    self.queue.unpop(chain);
                    self.publish(io, counters, events)?;
                    return Ok(Turn::Sleep);
                }
                let sent = if down { Err(Lost::Guest) } else { self.send(io, packet) };
                match sent {
                    Ok(bytes) => {
                        self.sent.0 += 1;
                        self.sent.1 += bytes;
                        limit.charge(bytes);
                        if let Some(capture) = capture {
                            let frame = packet.skip(HEADER_LEN as u64);
                            capture.note(self.queue.dma(), frame, counters, events);
                        }
                    }
                    Err(Lost::Blocked) => {
                        self.queue.unpop(chain);
                        self.publish(io, counters, events)?;
                        self.blocked = true;
                        return Ok(Turn::Sleep);
                    }
                    Err(Lost::Guest) => counters.tx_dropped.add(1),
                    Err(Lost::Host(error)) => {
                        counters.tx_dropped.add(1);
                        counters.host_errors.note(events, "send a packet", &error);
                    }
                }
                self.queue.complete(chain, 0)?;
                budget -= 1;
                if budget == 0 {
                    self.publish(io, counters, events)?;
                    return Ok(Turn::Again);
                }
            }
            self.publish(io, counters, events)?;
            if !self.queue.enable_kicks()? {
                return Ok(Turn::Sleep);
            }
        }
    }

    /// Ends a batch.
    fn publish(
        &mut self,
        io: &impl NetIo,
        counters: &Counters,
        events: &EventSink,
    ) -> Result<(), QueueBroken> {
        flush(io, std::mem::take(&mut self.sent), counters, events);
        self.queue.flush()
    }

    /// Sends the packet in these segments; returns its bytes without the header.
    fn send(&self, io: &impl NetIo, packet: Segments<'_>) -> Result<u64, Lost> {
        let mem = self.queue.dma();
        if !(HEADER_LEN as u64 + ETHERNET_HEADER..=MAX_PACKET).contains(&packet.len()) {
            return Err(Lost::Guest);
        }
        let raw = mem.gather_obj::<[u8; HEADER_LEN]>(packet).ok().flatten().ok_or(Lost::Guest)?;
        let frame = packet.skip(HEADER_LEN as u64);
        // The host gets this copy: what the driver makes of its own meanwhile does not matter.
        let header = header::checked(raw, self.features, frame.len()).ok_or(Lost::Guest)?;
        io.send(mem, &header, frame).map_err(|e| match e {
            DmaIoError::Io(e) if e.kind() == io::ErrorKind::WouldBlock => Lost::Blocked,
            // The kernel's word on a header or a frame that makes no sense.
            DmaIoError::Io(e) if e.kind() == io::ErrorKind::InvalidInput => Lost::Guest,
            error => Lost::Host(error),
        })?;
        Ok(frame.len())
    }

    pub(super) fn finish(self) -> VirtQueue {
        self.queue
    }
}

/// Has the host take what was put off, and counts the packets and bytes that were `sent`.
pub(super) fn flush(io: &impl NetIo, sent: (u64, u64), counters: &Counters, events: &EventSink) {
    let (mut lost, mut lost_bytes) = (0, 0);
    if let Err(Unsent { packets, bytes, error }) = io.flush() {
        (lost, lost_bytes) = (packets, bytes);
        // As where they are sent at once.
        if error.kind() != io::ErrorKind::InvalidInput {
            counters.host_errors.note(events, "send a packet", &error);
        }
    }
    counters.tx_packets.add(sent.0.saturating_sub(lost));
    counters.tx_bytes.add(sent.1.saturating_sub(lost_bytes));
    counters.tx_dropped.add(lost);
}

/// Why a packet was not sent.
#[derive(Debug)]
enum Lost {
    /// Not now.
    Blocked,
    /// It is wrong.
    Guest,
    /// The host's interface failed, or is down.
    Host(DmaIoError),
}
