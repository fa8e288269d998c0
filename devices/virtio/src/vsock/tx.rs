//! Packets from the guest: data goes straight from its buffers to the host's sockets.

use ossature_memory::{Dma, Segments};
use virtio_vsock::packet::PacketHeader;

use super::connection::{Broken, Phase};
use super::hub::{Entry, Hub, Reset};
use super::packet::{END_OF_MESSAGE, HEADER_LEN, HOST_CID, Header, Key, Kind, MAX_DATA, op};
use super::table::Id;
use crate::{Chain, QueueBroken, Turn, VirtQueue};

/// Packets that a turn takes at most.
const TURN_PACKETS: u32 = 64;

/// Takes packets until none is left, answers pile up, or the budget is used up.
pub(super) fn run(queue: &mut VirtQueue, hub: &mut Hub) -> Result<Turn, QueueBroken> {
    hub.stalled = false;
    queue.disable_kicks()?;
    let mut budget = TURN_PACKETS;
    loop {
        if !hub.may_reply() {
            queue.flush()?;
            // The guest takes answers first, and its buffers for them are what goes on here.
            hub.stalled = true;
            return Ok(Turn::Sleep);
        }
        if budget == 0 {
            queue.flush()?;
            return Ok(Turn::Again);
        }
        budget -= 1;
        let Some(chain) = queue.pop()? else {
            queue.flush()?;
            if queue.enable_kicks()? {
                continue;
            }
            return Ok(Turn::Sleep);
        };
        hub.packet(queue.dma(), &chain);
        queue.complete(chain, 0)?;
    }
}

impl Hub {
    /// Does what a packet of the guest's says.
    fn packet(&mut self, dma: &Dma, chain: &Chain) {
        let all = Segments::first_bytes(chain.readable(), chain.readable_len().into());
        let Some(raw) = dma.gather_obj::<PacketHeader>(all).ok().flatten() else {
            self.counters.dropped.add(1);
            return;
        };
        let header = Header::parse(&raw);
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            self.counters.dropped.add(1);
            return;
        }
        self.counters.tx_packets.add(1);
        let key = Key { guest: header.src_port, host: header.dst_port };
        let found = self.table.find(key);
        let kind = Kind::from_wire(header.kind).filter(|kind| self.seqpacket || *kind == Kind::Stream);
        // The data begin behind the header, and there are as many bytes as it says.
        let data = all.skip(HEADER_LEN as u64);
        let is_sound = header.len <= MAX_DATA && u64::from(header.len) <= data.len();
        match (found, kind) {
            (_, None) => {
                self.counters.dropped.add(1);
                self.unknown(key, &header);
            }
            (None, Some(kind)) if header.op == op::REQUEST => self.dial(key, kind, &header),
            (None, Some(_)) => self.unknown(key, &header),
            (Some(id), Some(kind)) => {
                let data = data.take(header.len.into());
                if !is_sound {
                    self.counters.dropped.add(1);
                }
                let heard = if is_sound { self.hear(id, kind, &header, dma, data) } else { Err(Broken) };
                match heard {
                    Ok(()) => self.settle(id),
                    Err(Broken) => self.reset(id),
                }
            }
        }
    }

    /// Answers a packet of no connection.
    fn unknown(&mut self, key: Key, header: &Header) {
        if header.op != op::RST {
            self.replies.push_back(Reset { key, kind: header.kind });
        }
    }

    /// A packet of the connection `id`.
    fn hear(
        &mut self,
        id: Id,
        kind: Kind,
        header: &Header,
        dma: &Dma,
        data: Segments<'_>,
    ) -> Result<(), Broken> {
        let Some(Entry::Connection(connection)) = self.table.get(id) else { return Ok(()) };
        if connection.kind != kind {
            return Err(Broken);
        }
        connection.credit.hear(header);
        match (header.op, connection.phase) {
            (op::RST, _) => {
                self.ended(id);
                Ok(())
            }
            (op::RESPONSE, Phase::Asking) => {
                if self.accepted(id) {
                    Ok(())
                } else {
                    Err(Broken)
                }
            }
            (op::SHUTDOWN, Phase::Open) => {
                connection.hear_shut(header.flags);
                Ok(())
            }
            (op::RW, Phase::Open) => {
                let end = header.flags & END_OF_MESSAGE != 0;
                connection.receive(dma, data, end)?;
                self.counters.tx_bytes.add(data.len());
                Ok(())
            }
            (op::CREDIT_UPDATE, Phase::Open) => Ok(()),
            (op::CREDIT_REQUEST, Phase::Open) => {
                connection.want(op::CREDIT_UPDATE);
                Ok(())
            }
            _ => Err(Broken),
        }
    }
}
