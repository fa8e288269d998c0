//! Packets from the guest: each chain goes to the host in one call.

use std::io;

use ossature_memory::{DmaIoError, Segments};

use super::header::{self, HEADER_LEN, MAX_PACKET};
use super::io::NetIo;
use super::shared::Shared;
use crate::{QueueBroken, Turn, VirtQueue};

/// Packets that a turn sends at most.
const TURN_PACKETS: u32 = 128;
/// Destination, source and type.
const ETHERNET_HEADER: u64 = 14;

/// The transmit queue.
#[derive(Debug)]
pub(super) struct Tx {
    queue: VirtQueue,
    features: u128,
    /// The host takes no packet until its descriptor polls writable.
    blocked: bool,
}

impl Tx {
    pub(super) fn new(queue: VirtQueue, features: u128) -> Self {
        Self { queue, features, blocked: false }
    }

    pub(super) fn blocked(&self) -> bool {
        self.blocked
    }

    /// Sends packets until none is left, the host takes no more, or the budget is used up.
    pub(super) fn run(&mut self, with: &Shared<impl NetIo>) -> Result<Turn, QueueBroken> {
        let Shared { io, counters, events } = with;
        self.blocked = false;
        self.queue.disable_kicks()?;
        let mut budget = TURN_PACKETS;
        loop {
            while let Some(chain) = self.queue.pop()? {
                let packet = Segments::first_bytes(chain.readable(), chain.readable_len().into());
                match self.send(&**io, packet) {
                    Ok(bytes) => {
                        counters.tx_packets.add(1);
                        counters.tx_bytes.add(bytes);
                    }
                    Err(Lost::Blocked) => {
                        self.queue.unpop(chain);
                        self.queue.flush()?;
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
                    self.queue.flush()?;
                    return Ok(Turn::Again);
                }
            }
            self.queue.flush()?;
            if !self.queue.enable_kicks()? {
                return Ok(Turn::Sleep);
            }
        }
    }

    /// Sends the packet in these segments; returns its bytes without the header.
    fn send(&self, io: &impl NetIo, packet: Segments<'_>) -> Result<u64, Lost> {
        let mem = self.queue.dma();
        if !(HEADER_LEN as u64 + ETHERNET_HEADER..=MAX_PACKET).contains(&packet.len()) {
            return Err(Lost::Guest);
        }
        let raw = mem.gather_obj::<[u8; HEADER_LEN]>(packet).ok().flatten().ok_or(Lost::Guest)?;
        // The host gets this copy: what the driver makes of its own meanwhile does not matter.
        let header = header::checked(raw, self.features).ok_or(Lost::Guest)?;
        let frame = packet.skip(HEADER_LEN as u64);
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
