//! Packets to the guest: data is read from the host's sockets straight into the buffers that the driver has posted.

use std::io;
use std::os::fd::AsFd;

use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{DmaIoError, Segment, Segments};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{RecvFlags, recv};

use super::connection::Connection;
use super::hub::{Entry, Hub, Message};
use super::packet::{self, END_OF_MESSAGE, HEADER_LEN, Header, Kind, MAX_DATA, op};
use super::table::Id;
use crate::{Chain, QueueBroken, Turn, VirtQueue};

/// Packets that a turn sends at most, about.
const TURN_PACKETS: usize = 64;
/// Buffers that one read fills at most.
const MAX_BATCH: usize = 64;
/// Pieces of buffers after which no further one is added: readv(2) takes as many.
const SEGMENTS_ENOUGH: usize = 1024;
/// Bytes of one read, after which others have their turn.
const MAX_READ: u32 = 256 << 10;
/// The longest message from the host, which is kept here while the guest has buffers for a part of it only.
const MAX_MESSAGE: usize = 256 << 10;

/// The receive queue, with room for one read.
#[derive(Debug)]
pub(super) struct Rx {
    queue: VirtQueue,
    /// With the bytes of data that the read has room for in each.
    chains: Vec<(Chain, u32)>,
    segments: Vec<Segment>,
    /// A reset was last.
    replied: bool,
}

/// What became of a chain.
enum Done {
    /// It was used.
    Used(usize),
    /// There is nothing for it.
    Nothing(Chain),
}

impl Rx {
    pub(super) fn new(queue: VirtQueue) -> Self {
        Self { queue, chains: Vec::new(), segments: Vec::new(), replied: false }
    }

    pub(super) fn finish(self) -> VirtQueue {
        self.queue
    }

    /// Gives the guest what there is for it, until no buffer is left or the budget is used up.
    pub(super) fn run(&mut self, hub: &mut Hub) -> Result<Turn, QueueBroken> {
        self.queue.disable_kicks()?;
        let mut budget = TURN_PACKETS;
        loop {
            if !hub.has_news() {
                self.queue.flush()?;
                return Ok(Turn::Sleep);
            }
            if budget == 0 {
                self.queue.flush()?;
                return Ok(Turn::Again);
            }
            let Some(chain) = self.queue.pop()? else {
                self.queue.flush()?;
                if self.queue.enable_kicks()? {
                    budget -= 1;
                    continue;
                }
                return Ok(Turn::Sleep);
            };
            if (chain.writable_len() as usize) < HEADER_LEN {
                hub.counters.dropped.add(1);
                self.queue.complete(chain, 0)?;
                budget -= 1;
                continue;
            }
            match self.one(hub, chain)? {
                Done::Used(packets) => budget = budget.saturating_sub(packets.max(1)),
                Done::Nothing(chain) => self.queue.unpop(chain),
            }
        }
    }

    /// The next packet, or a few of one connection.
    fn one(&mut self, hub: &mut Hub, chain: Chain) -> Result<Done, QueueBroken> {
        if hub.message.is_some() {
            return self.fragment(hub, chain);
        }
        // In turns, so that a guest that only asks for resets does not keep others waiting.
        let reset = if self.replied && hub.table.has_ready() { None } else { hub.replies.pop_front() };
        self.replied = reset.is_some();
        if let Some(reset) = reset {
            let header = Header::to_guest(hub.cid, reset.key, reset.kind, op::RST);
            hub.counters.rx_packets.add(1);
            return self.put(chain, &header).map(|()| Done::Used(1));
        }
        let Some(id) = hub.table.next_ready() else { return Ok(Done::Nothing(chain)) };
        let cid = hub.cid;
        let Some(Entry::Connection(connection)) = hub.table.get(id) else { return Ok(Done::Nothing(chain)) };
        if let Some(op) = connection.take_want() {
            let mut header = Header::to_guest(cid, connection.key, connection.kind.to_wire(), op);
            connection.credit.tell(&mut header);
            if op == op::SHUTDOWN {
                header.flags = connection.said_shut();
                if connection.has_said_all() {
                    hub.await_close(id);
                }
            }
            hub.counters.rx_packets.add(1);
            self.put(chain, &header)?;
            hub.settle(id);
            return Ok(Done::Used(1));
        }
        if !(connection.may_read() && connection.has_credit()) {
            return Ok(Done::Nothing(chain));
        }
        match connection.kind {
            Kind::Stream => self.stream(hub, id, chain),
            Kind::SeqPacket => self.message(hub, id, chain),
        }
    }

    /// Writes a packet without data.
    fn put(&mut self, chain: Chain, header: &Header) -> Result<(), QueueBroken> {
        let place = Segments::first_bytes(chain.writable(), chain.writable_len().into());
        // The queue has found it in RAM.
        let _ = self.queue.dma().scatter_obj(place, header.raw());
        self.queue.complete(chain, HEADER_LEN as u32)
    }

    /// Room for data in a chain.
    fn room(chain: &Chain) -> u32 {
        chain.writable_len().saturating_sub(HEADER_LEN as u32).min(MAX_DATA)
    }

    /// Reads what a stream has, with one call into several buffers if the last one was full.
    fn stream(&mut self, hub: &mut Hub, id: Id, first: Chain) -> Result<Done, QueueBroken> {
        let cid = hub.cid;
        let Some(Entry::Connection(connection)) = hub.table.get(id) else { return Ok(Done::Nothing(first)) };
        let wanted = connection.credit.peer_room().min(MAX_READ);
        let mut total = 0;
        let mut next = Some(first);
        while let Some(chain) = next {
            let room = Self::room(&chain).min(wanted - total);
            if room == 0 {
                // It is of no use for data, and neither is one behind it.
                self.chains.push((chain, 0));
                break;
            }
            match chain.writable() {
                // Nearly always.
                [one] => {
                    // In RAM, which does not wrap.
                    let addr = GuestAddress(one.addr.0.wrapping_add(HEADER_LEN as u64));
                    self.segments.push(Segment { addr, len: room });
                }
                all => {
                    let place = Segments::first_bytes(all, chain.writable_len().into());
                    self.segments.extend(place.skip(HEADER_LEN as u64).take(room.into()).iter());
                }
            }
            total += room;
            self.chains.push((chain, room));
            let more = self.chains.len() < connection.batch
                && total < wanted
                && self.segments.len() < SEGMENTS_ENOUGH;
            next = if more { self.queue.pop()? } else { None };
        }
        let read = match connection.socket() {
            Some(socket) if total > 0 => {
                let to = Segments::first_bytes(&self.segments, total.into());
                self.queue.dma().readv(socket, to)
            }
            _ => Ok(0),
        };
        self.segments.clear();
        let read = match read {
            Ok(0) if total == 0 => {
                hub.counters.dropped.add(1);
                hub.settle(id);
                // Waiting for another would keep the stream waiting.
                return self.drop_chain().map(|()| Done::Used(1));
            }
            Ok(0) => {
                connection.end_of_data();
                0
            }
            Ok(read) => read as u32,
            Err(DmaIoError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => {
                connection.drained();
                0
            }
            Err(DmaIoError::Io(e)) if connection.read_failed(&e).is_ok() => 0,
            Err(_) => {
                self.give_back(total);
                hub.reset(id);
                return Ok(Done::Used(1));
            }
        };
        let unused = total - read;
        self.give_back(unused);
        let used = self.chains.len();
        if read > 0 {
            let mut header = Header::to_guest(cid, connection.key, connection.kind.to_wire(), op::RW);
            connection.credit.tell(&mut header);
            connection.sent(read);
            // Slowly down, so that what comes in bursts is read with one call again.
            let batch = if unused == 0 { 2 * used } else { (connection.batch + used).div_ceil(2) };
            connection.batch = batch.min(MAX_BATCH);
            self.complete(header, read)?;
            hub.counters.rx_packets.add(used as u64);
            hub.counters.rx_bytes.add(read.into());
        }
        hub.settle(id);
        Ok(Done::Used(used))
    }

    /// Gives the driver the chains that were read into, with `data` bytes in all.
    fn complete(&mut self, header: Header, mut data: u32) -> Result<(), QueueBroken> {
        let mut raw = header.raw();
        for (chain, room) in self.chains.drain(..) {
            let len = room.min(data);
            data -= len;
            packet::set_len(&mut raw, len);
            let place = Segments::first_bytes(chain.writable(), chain.writable_len().into());
            // The queue has found it in RAM.
            let _ = self.queue.dma().scatter_obj(place, raw);
            self.queue.complete(chain, HEADER_LEN as u32 + len)?;
        }
        Ok(())
    }

    /// Takes back the last chains, which only `unused` bytes of the room for data are in.
    fn give_back(&mut self, mut unused: u32) {
        while let Some((chain, room)) = self.chains.pop_if(|(_, room)| *room <= unused) {
            unused -= room;
            self.queue.unpop(chain);
        }
    }

    /// Uses up the only chain, in which there is no room for data.
    fn drop_chain(&mut self) -> Result<(), QueueBroken> {
        self.chains.pop().map_or(Ok(()), |(chain, _)| self.queue.complete(chain, 0))
    }

    /// Begins with the next message, if the guest has credit for all of it.
    fn message(&mut self, hub: &mut Hub, id: Id, chain: Chain) -> Result<Done, QueueBroken> {
        let Some(Entry::Connection(connection)) = hub.table.get(id) else { return Ok(Done::Nothing(chain)) };
        match next_message(connection) {
            Ok(Next::Message(bytes)) => {
                connection.sent(bytes.len() as u32);
                hub.counters.rx_bytes.add(bytes.len() as u64);
                hub.message = Some(Message { id, bytes, sent: 0 });
                return self.fragment(hub, chain);
            }
            Ok(Next::Needs(len)) if len <= connection.credit.peer_alloc() => connection.needs(len),
            Ok(Next::Empty) => {}
            Ok(Next::End) => connection.end_of_data(),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => connection.drained(),
            Err(e) if connection.read_failed(&e).is_ok() => {}
            // The guest will never have room, or the socket is broken.
            Ok(Next::Needs(_)) | Err(_) => {
                self.queue.unpop(chain);
                hub.reset(id);
                return Ok(Done::Used(1));
            }
        }
        self.queue.unpop(chain);
        hub.settle(id);
        Ok(Done::Used(1))
    }

    /// The next part of the message that was begun with.
    fn fragment(&mut self, hub: &mut Hub, chain: Chain) -> Result<Done, QueueBroken> {
        let cid = hub.cid;
        let Some(message) = &mut hub.message else { return Ok(Done::Nothing(chain)) };
        let id = message.id;
        let Some(Entry::Connection(connection)) = hub.table.get(id) else {
            hub.message = None;
            return Ok(Done::Nothing(chain));
        };
        let rest = message.bytes.get(message.sent..).unwrap_or_default();
        let len = rest.len().min(Self::room(&chain) as usize);
        let mut header = Header::to_guest(cid, connection.key, connection.kind.to_wire(), op::RW);
        header.len = len as u32;
        let ends = len == rest.len();
        header.flags = if ends { END_OF_MESSAGE } else { 0 };
        connection.credit.tell(&mut header);
        let place = Segments::first_bytes(chain.writable(), chain.writable_len().into());
        if len > 0 {
            let _ =
                self.queue.dma().scatter(place.skip(HEADER_LEN as u64), rest.get(..len).unwrap_or_default());
            let _ = self.queue.dma().scatter_obj(place, header.raw());
            message.sent += len;
            hub.counters.rx_packets.add(1);
            self.queue.complete(chain, (HEADER_LEN + len) as u32)?;
        } else {
            hub.counters.dropped.add(1);
            self.queue.complete(chain, 0)?;
        }
        if ends && len > 0 {
            hub.message = None;
            hub.settle(id);
        }
        Ok(Done::Used(1))
    }
}

/// What a socket of messages has.
enum Next {
    Message(Vec<u8>),
    /// A message of this length, for which there is no credit.
    Needs(u32),
    /// A message without bytes, which is gone.
    Empty,
    End,
}

fn next_message(connection: &Connection) -> io::Result<Next> {
    let Some(socket) = connection.socket() else { return Ok(Next::End) };
    let (_, len) = recv(socket, &mut [0][..], RecvFlags::PEEK | RecvFlags::TRUNC | RecvFlags::DONTWAIT)?;
    if len == 0 {
        if connection.has_ended() {
            return Ok(Next::End);
        }
        let mut state = [PollFd::from_borrowed_fd(socket.as_fd(), PollFlags::RDHUP)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut state, Some(&now))? > 0 {
            return Ok(Next::End);
        }
        recv(socket, &mut [0][..], RecvFlags::DONTWAIT)?;
        return Ok(Next::Empty);
    }
    if len > MAX_MESSAGE {
        return Err(io::ErrorKind::InvalidData.into());
    }
    if len > connection.credit.peer_room() as usize {
        return Ok(Next::Needs(len as u32));
    }
    let mut bytes = vec![0; len];
    let (read, _) = recv(socket, &mut bytes[..], RecvFlags::DONTWAIT)?;
    bytes.truncate(read);
    Ok(if bytes.is_empty() { Next::Empty } else { Next::Message(bytes) })
}

impl Hub {
    /// Returns true if there may be something for the guest.
    fn has_news(&self) -> bool {
        self.message.is_some() || !self.replies.is_empty() || self.table.has_ready()
    }
}
