//! All connections, and the host's side of them.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ossature_bus::EventSink;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;

use super::connection::{Connection, Phase};
use super::counters::Counters;
use super::deadlines::{Deadlines, Wait};
use super::handshake::{self, Heard};
use super::host::HostSocket;
use super::packet::{Header, Key, Kind, op};
use super::table::{Id, Table};
use crate::Turn;

/// Events of the host's that a turn looks at, programs that it takes, and waits that it ends.
const TURN_EVENTS: usize = 64;
/// Resets that wait for a buffer of the guest's before its packets are left where they are.
const MAX_REPLIES: usize = 256;
/// How much of what the guest sends is kept, by all its connections: the next gets its share, within bounds.
const POOL: usize = 64 << 20;
pub(super) const MAX_ALLOC: usize = 256 << 10;
const MIN_ALLOC: usize = 16 << 10;
/// The first port of the host's that a program is given.
const FIRST_PORT: u32 = 1 << 30;
/// How long a busy socket of the host's is tried: as long as Linux waits.
const DIALING: Duration = Duration::from_secs(2);

/// Numbers of what is no connection.
const TIMER: u64 = u64::MAX;
const ACCEPT: u64 = u64::MAX - 1;
const STREAMS: u64 = u64::MAX - 2;
const PACKETS: u64 = u64::MAX - 3;

/// What occupies a place in the table.
#[derive(Debug)]
pub(super) enum Entry {
    /// A program that has not said yet what it wants.
    Program(OwnedFd, Kind),
    Connection(Box<Connection>),
}

/// A message that the guest has got a part of.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: Id,
    pub(super) bytes: Vec<u8>,
    pub(super) sent: usize,
}

/// A connection that the guest is told there is none of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reset {
    pub(super) key: Key,
    pub(super) kind: u16,
}

/// What lives as long as the device: the worker borrows it for each turn.
pub(super) struct Hub {
    pub(super) cid: u64,
    epoll: OwnedFd,
    streams: Option<HostSocket>,
    packets: Option<HostSocket>,
    /// Programs may wait at these.
    accepting: [bool; 2],
    /// A wait for descriptors is under way.
    starved: bool,
    /// Some waits may be over.
    due: bool,
    pub(super) table: Table<Entry>,
    pub(super) replies: VecDeque<Reset>,
    /// The guest's packets are left where they are.
    pub(super) stalled: bool,
    pub(super) message: Option<Message>,
    deadlines: Deadlines,
    next_port: u32,
    /// The guest has to be told that its connections are gone.
    pub(super) lost: bool,
    /// The driver has negotiated sequential packets.
    pub(super) seqpacket: bool,
    pub(super) counters: Arc<Counters>,
    pub(super) events: EventSink,
}

impl Hub {
    pub(super) fn new(cid: u64, max: usize, counters: Arc<Counters>) -> io::Result<Self> {
        let (epoll, deadlines) = (epoll::create(epoll::CreateFlags::CLOEXEC)?, Deadlines::new()?);
        let edge = EventFlags::IN | EventFlags::ET;
        epoll::add(&epoll, deadlines.timer(), EventData::new_u64(TIMER), edge)?;
        Ok(Self {
            cid,
            epoll,
            streams: None,
            packets: None,
            accepting: [false; 2],
            starved: false,
            due: false,
            table: Table::new(max),
            replies: VecDeque::new(),
            stalled: false,
            message: None,
            deadlines,
            next_port: FIRST_PORT,
            lost: false,
            seqpacket: false,
            counters,
            events: EventSink::discard(),
        })
    }

    pub(super) fn set_max(&mut self, max: usize) {
        self.table = Table::new(max);
    }

    #[cfg(test)]
    pub(super) fn set_wait(&mut self, wait: Wait, after: Duration) {
        self.deadlines.set_wait(wait, after);
    }

    /// Takes programs from `socket`, in place of one of the same kind.
    pub(super) fn add(&mut self, socket: HostSocket) -> io::Result<()> {
        let (place, number) = match socket.kind() {
            Kind::Stream => (&mut self.streams, STREAMS),
            Kind::SeqPacket => (&mut self.packets, PACKETS),
        };
        epoll::add(
            &self.epoll,
            socket.listener(),
            EventData::new_u64(number),
            EventFlags::IN | EventFlags::ET,
        )?;
        *place = Some(socket);
        Ok(())
    }

    pub(super) fn has_packets(&self) -> bool {
        self.packets.is_some()
    }

    /// Readable when something has happened on the host.
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.epoll.as_fd()
    }

    /// Ends all connections; nobody is told.
    pub(super) fn clear(&mut self) {
        self.table.clear();
        self.deadlines.clear();
        self.replies.clear();
        (self.message, self.stalled, self.starved, self.lost) = (None, false, false, false);
        // Programs may have waited for descriptors.
        self.accepting = [true; 2];
    }

    /// Returns true if there are connections.
    pub(super) fn has_connections(&self) -> bool {
        self.table.has_keys()
    }

    /// Returns true if another packet of the guest's may be answered.
    pub(super) fn may_reply(&self) -> bool {
        self.replies.len() < MAX_REPLIES
    }

    /// Looks at what has happened on the host.
    pub(super) fn poll(&mut self) -> Turn {
        let nothing = epoll::Event { flags: EventFlags::empty(), data: EventData::new_u64(0) };
        let mut events = [nothing; TURN_EVENTS];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let count = match epoll::wait(&self.epoll, &mut events, Some(&now)) {
            Ok(count) => count,
            Err(Errno::INTR) => return Turn::Again,
            // There is no other error for what it is.
            Err(_) => return Turn::Sleep,
        };
        for event in events.iter().take(count) {
            let flags = event.flags;
            match event.data.u64() {
                TIMER => self.due = true,
                STREAMS => self.accepting[0] = true,
                PACKETS => self.accepting[1] = true,
                number => self.host_event(Id::from_u64(number), flags),
            }
        }
        self.due = self.due && self.expire();
        let waiting = self.accept();
        if count == TURN_EVENTS || waiting || self.due { Turn::Again } else { Turn::Sleep }
    }

    /// Takes programs. Returns true if there may be more.
    fn accept(&mut self) -> bool {
        for (index, kind) in [Kind::Stream, Kind::SeqPacket].into_iter().enumerate() {
            for _ in 0..TURN_EVENTS {
                let Some(accepting) = self.accepting.get_mut(index).filter(|accepting| **accepting) else {
                    break;
                };
                let socket = match kind {
                    Kind::Stream => &self.streams,
                    Kind::SeqPacket => &self.packets,
                };
                match socket.as_ref().map_or(Err(io::ErrorKind::WouldBlock.into()), HostSocket::accept) {
                    Ok(socket) => self.add_program(socket, kind),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => *accepting = false,
                    Err(e) if matches!(Errno::from_io_error(&e), Some(Errno::CONNABORTED | Errno::INTR)) => {}
                    Err(e) => {
                        *accepting = false;
                        self.counters.host_errors.note(&self.events, "take a connection", &e);
                        self.starve();
                    }
                }
            }
        }
        self.accepting.contains(&true)
    }

    /// Looks again for programs in a while.
    fn starve(&mut self) {
        if !std::mem::replace(&mut self.starved, true) {
            self.wait(Wait::Retry, ACCEPT);
        }
    }

    fn wait(&mut self, wait: Wait, who: u64) {
        let table = &self.table;
        self.deadlines.push(wait, who, table.len(), |who| who == ACCEPT || table.contains(Id::from_u64(who)));
    }

    fn add_program(&mut self, socket: OwnedFd, kind: Kind) {
        let Some(id) = self.table.insert(Entry::Program(socket, kind)) else {
            // It reads the end.
            self.counters.refused.add(1);
            return;
        };
        if self.watch(id) {
            self.wait(Wait::Answer, id.to_u64());
        } else {
            self.table.remove(id);
        }
    }

    /// Has the host's kernel tell of the socket's events. Returns false if it does not.
    fn watch(&mut self, id: Id) -> bool {
        let socket = match self.table.get(id) {
            Some(Entry::Program(socket, _)) => OwnedFd::as_fd(socket),
            Some(Entry::Connection(connection)) => match connection.socket() {
                Some(socket) => socket,
                None => return false,
            },
            None => return false,
        };
        let flags = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        let added = epoll::add(&self.epoll, socket, EventData::new_u64(id.to_u64()), flags);
        if let Err(e) = &added {
            self.counters.host_errors.note(&self.events, "watch a connection", e);
        }
        added.is_ok()
    }

    fn host_event(&mut self, id: Id, flags: EventFlags) {
        match self.table.get(id) {
            None => {}
            Some(Entry::Program(socket, kind)) => {
                let kind = *kind;
                match handshake::hear(socket.as_fd(), kind) {
                    Heard::Port(port) => self.ask(id, kind, port),
                    Heard::Part if !flags.intersects(EventFlags::HUP | EventFlags::RDHUP) => {}
                    _ => {
                        self.counters.refused.add(1);
                        self.table.remove(id);
                    }
                }
            }
            Some(Entry::Connection(connection)) => {
                let ended = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                if ended || flags.contains(EventFlags::IN) {
                    connection.host_event(flags.contains(EventFlags::RDHUP), flags.contains(EventFlags::HUP));
                }
                let flushed = if connection.is_flushing() { connection.flush() } else { Ok(()) };
                match flushed {
                    Ok(()) => self.settle(id),
                    Err(_) => self.reset(id),
                }
            }
        }
    }

    /// A program wants the guest's `port`.
    fn ask(&mut self, id: Id, kind: Kind, port: u32) {
        let alloc = self.alloc();
        let key = Key { guest: port, host: self.free_port(port) };
        self.table.update(id, |entry| {
            let Entry::Program(socket, _) = entry else { return entry };
            let mut connection = Connection::new(key, kind, Phase::Asking, Some(socket), alloc);
            connection.want(op::REQUEST);
            Entry::Connection(Box::new(connection))
        });
        self.table.name(key, id);
        self.table.queue(id);
        self.wait(Wait::Answer, id.to_u64());
    }

    /// A port of the host's by which no other connection to the guest's `port` goes.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = host.checked_add(1).unwrap_or(FIRST_PORT);
            // There are more than there can be connections.
            if self.table.find(Key { guest, host }).is_none() {
                return host;
            }
        }
    }

    fn alloc(&self) -> u32 {
        (POOL / (self.table.len() + 1)).clamp(MIN_ALLOC, MAX_ALLOC) as u32
    }

    /// The guest wants a connection that there is not yet.
    pub(super) fn dial(&mut self, key: Key, kind: Kind, header: &Header) {
        if self.table.is_full() {
            return self.refuse(key, kind);
        }
        let socket = match self.connect(key.host, kind) {
            Ok(socket) => Some(socket),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => None,
            Err(_) => return self.refuse(key, kind),
        };
        let waits = socket.is_none();
        let mut connection = Connection::new(key, kind, Phase::Dialing(Instant::now()), None, self.alloc());
        connection.credit.hear(header);
        if let Some(socket) = socket {
            connection.opened(socket);
        }
        let Some(id) = self.table.insert(Entry::Connection(Box::new(connection))) else {
            return self.refuse(key, kind);
        };
        self.table.name(key, id);
        if waits {
            self.wait(Wait::Retry, id.to_u64());
        } else {
            self.opened(id);
        }
    }

    fn connect(&self, port: u32, kind: Kind) -> io::Result<OwnedFd> {
        let socket = match kind {
            Kind::Stream => &self.streams,
            Kind::SeqPacket => &self.packets,
        };
        socket.as_ref().map_or(Err(io::ErrorKind::ConnectionRefused.into()), |socket| socket.connect(port))
    }

    /// A connection that the guest wanted has a socket now.
    fn opened(&mut self, id: Id) {
        if self.watch(id) {
            self.counters.opened.add(1);
            self.table.queue(id);
        } else {
            self.reset(id);
        }
    }

    /// Tries a busy socket once more.
    fn redial(&mut self, id: Id) {
        let Some(Entry::Connection(connection)) = self.table.get(id) else { return };
        let Phase::Dialing(since) = connection.phase else { return };
        let (key, kind) = (connection.key, connection.kind);
        match self.connect(key.host, kind) {
            Ok(socket) => {
                if let Some(Entry::Connection(connection)) = self.table.get(id) {
                    connection.opened(socket);
                }
                self.opened(id);
            }
            Err(e) if e.kind() == io::ErrorKind::WouldBlock && since.elapsed() < DIALING => {
                self.wait(Wait::Retry, id.to_u64());
            }
            Err(_) => {
                self.forget(id);
                self.refuse(key, kind);
            }
        }
    }

    fn refuse(&mut self, key: Key, kind: Kind) {
        self.counters.refused.add(1);
        self.replies.push_back(Reset { key, kind: kind.to_wire() });
    }

    /// The guest accepts a program's connection. Returns false if the program has left.
    pub(super) fn accepted(&mut self, id: Id) -> bool {
        let Some(Entry::Connection(connection)) = self.table.get(id) else { return false };
        let text = handshake::answer(connection.key.host);
        let flags = rustix::net::SendFlags::NOSIGNAL | rustix::net::SendFlags::DONTWAIT;
        let sent = connection.socket().map(|socket| rustix::net::send(socket, text.as_bytes(), flags));
        connection.phase = Phase::Open;
        let told = matches!(sent, Some(Ok(len)) if len == text.len());
        if told {
            self.counters.opened.add(1);
        }
        told
    }

    /// Gives up what has waited for too long. Returns true if there may be more.
    fn expire(&mut self) -> bool {
        for _ in 0..TURN_EVENTS {
            let Some((wait, number)) = self.deadlines.pop_due() else { return false };
            if number == ACCEPT {
                (self.accepting, self.starved) = ([true; 2], false);
                continue;
            }
            let id = Id::from_u64(number);
            match (wait, self.table.get(id)) {
                (Wait::Retry, _) => self.redial(id),
                (Wait::Answer, Some(Entry::Program(..))) => {
                    self.counters.refused.add(1);
                    self.table.remove(id);
                }
                (Wait::Answer, Some(Entry::Connection(connection))) if connection.phase == Phase::Asking => {
                    self.reset(id);
                }
                (Wait::Close, Some(Entry::Connection(connection))) if connection.has_said_all() => {
                    self.reset(id);
                }
                _ => {}
            }
        }
        true
    }

    /// The guest was told that the host neither sends nor takes more.
    pub(super) fn await_close(&mut self, id: Id) {
        self.wait(Wait::Close, id.to_u64());
    }

    /// Does what follows from a connection's state.
    pub(super) fn settle(&mut self, id: Id) {
        let Some(Entry::Connection(connection)) = self.table.get(id) else { return };
        if connection.settle() {
            let (key, kind, lingering) =
                (connection.key, connection.kind, connection.phase == Phase::Lingering);
            self.forget(id);
            if !lingering {
                self.replies.push_back(Reset { key, kind: kind.to_wire() });
            }
        } else if connection.has_work() {
            self.table.queue(id);
        }
    }

    /// The guest has reset a connection.
    pub(super) fn ended(&mut self, id: Id) {
        let Some(Entry::Connection(connection)) = self.table.get(id) else { return };
        if connection.has_guest_finished() && connection.is_flushing() {
            connection.phase = Phase::Lingering;
            let key = connection.key;
            self.table.unname(key);
            // Its ports may be another's by now.
            self.message.take_if(|message| message.id == id);
        } else {
            if connection.phase == Phase::Asking {
                self.counters.refused.add(1);
            }
            self.forget(id);
        }
    }

    /// Ends a connection and tells the guest, if it knows of it.
    pub(super) fn reset(&mut self, id: Id) {
        let Some(Entry::Connection(connection)) = self.table.get(id) else { return };
        let (key, kind) = (connection.key, connection.kind.to_wire());
        let unknown = connection.phase == Phase::Lingering || connection.is_unheard_of();
        self.forget(id);
        self.counters.resets.add(1);
        if !unknown {
            self.replies.push_back(Reset { key, kind });
        }
    }

    fn forget(&mut self, id: Id) {
        if let Some(Entry::Connection(connection)) = self.table.remove(id) {
            // One that lingers has no name any more, and another may have it.
            if connection.phase != Phase::Lingering {
                self.table.unname(connection.key);
            }
        }
        self.message.take_if(|message| message.id == id);
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (streams, packets) = (&self.streams, &self.packets);
        f.debug_struct("Hub").field("streams", streams).field("packets", packets).finish_non_exhaustive()
    }
}
