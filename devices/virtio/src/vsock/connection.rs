//! One connection between the guest and a socket of the host's: what it has come to, and what it has for the guest.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use ossature_memory::{Dma, DmaIoError, Segments};
use rustix::net::Shutdown;

use super::credit::Credit;
use super::outbox::Outbox;
use super::packet::{Key, Kind, SHUT_RECEIVE, SHUT_SEND, op};

const SHUT_BOTH: u32 = SHUT_RECEIVE | SHUT_SEND;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The guest wants it; whoever serves the port is busy since then.
    Dialing(Instant),
    /// A program wants it; the guest is asked.
    Asking,
    /// It is there.
    Open,
    /// The guest has left, having sent all: what the host has not taken goes on.
    Lingering,
}

/// A connection that is broken, and that the guest is told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) kind: Kind,
    pub(super) phase: Phase,
    /// None before it is there, and when the host has left.
    socket: Option<OwnedFd>,
    pub(super) credit: Credit,
    outbox: Outbox,
    /// The packets without data that wait for their turn, a bit for each number.
    wants: u16,
    /// What SHUTDOWN says: by the guest, and by us as far as it was or will be told.
    heard_shut: u32,
    said_shut: u32,
    /// A read may give something.
    readable: bool,
    /// The host sends no more; it has left altogether.
    ended: bool,
    gone: bool,
    /// The host takes no more.
    deaf: bool,
    /// The host has been told that the guest sends no more.
    finished: bool,
    /// One error was read already.
    failed: bool,
    /// The guest was asked for credit since it last had none.
    asked: bool,
    /// Credit that the next message takes.
    needs: u32,
    /// Buffers of the guest's that the next read is given.
    pub(super) batch: usize,
}

impl Connection {
    pub(super) fn new(key: Key, kind: Kind, phase: Phase, socket: Option<OwnedFd>, alloc: u32) -> Self {
        Self {
            key,
            kind,
            phase,
            socket,
            credit: Credit::new(alloc),
            outbox: Outbox::new(kind, alloc),
            wants: 0,
            heard_shut: 0,
            said_shut: 0,
            readable: true,
            ended: false,
            gone: false,
            deaf: false,
            finished: false,
            failed: false,
            asked: false,
            needs: 1,
            batch: 1,
        }
    }

    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// It is there, on the host's side.
    pub(super) fn opened(&mut self, socket: OwnedFd) {
        // What there is to read will be told.
        (self.phase, self.socket, self.readable) = (Phase::Open, Some(socket), false);
        self.want(op::RESPONSE);
    }

    pub(super) fn want(&mut self, op: u16) {
        self.wants |= 1 << op;
    }

    /// The next packet without data for the guest.
    pub(super) fn take_want(&mut self) -> Option<u16> {
        if self.phase == Phase::Lingering {
            return None;
        }
        let op = self.wants.trailing_zeros();
        // None of them is above 7.
        self.wants &= self.wants.wrapping_sub(1);
        (op < u16::BITS).then_some(op as u16)
    }

    /// Returns true if the guest has not been asked yet.
    pub(super) fn is_unheard_of(&self) -> bool {
        self.wants & 1 << op::REQUEST != 0
    }

    /// The flags of a SHUTDOWN.
    pub(super) fn said_shut(&self) -> u32 {
        self.said_shut
    }

    /// Nothing more comes, and nothing more is taken.
    pub(super) fn has_said_all(&self) -> bool {
        self.said_shut == SHUT_BOTH
    }

    /// There may be data, and the guest wants it.
    pub(super) fn may_read(&self) -> bool {
        self.phase == Phase::Open
            && self.readable
            && self.socket.is_some()
            && self.heard_shut & SHUT_RECEIVE == 0
    }

    /// The guest has room for what is next.
    pub(super) fn has_credit(&self) -> bool {
        self.credit.peer_room() >= self.needs
    }

    /// Returns true if there is something for the guest. Asks it for credit where only that is missing.
    pub(super) fn has_work(&mut self) -> bool {
        if self.phase == Phase::Lingering {
            return false;
        }
        let mut may_read = self.may_read();
        if may_read && !self.has_credit() {
            may_read = false;
            if !self.asked {
                self.asked = true;
                self.want(op::CREDIT_REQUEST);
            }
        }
        self.wants != 0 || may_read
    }

    /// The next message takes `len` bytes of credit.
    pub(super) fn needs(&mut self, len: u32) {
        self.needs = len.max(1);
    }

    /// The guest was sent `len` bytes.
    pub(super) fn sent(&mut self, len: u32) {
        self.credit.sent(len);
        (self.needs, self.asked) = (1, false);
    }

    /// The host's kernel says that something has changed.
    pub(super) fn host_event(&mut self, ended: bool, gone: bool) {
        self.readable = true;
        self.ended |= ended | gone;
        self.gone |= gone;
        if self.gone && self.said_shut & SHUT_SEND != 0 {
            self.say_shut(SHUT_BOTH);
        }
    }

    /// There is nothing to read at the moment.
    pub(super) fn drained(&mut self) {
        self.readable = false;
    }

    /// Returns true if the host has said that it sends no more, whatever was not read yet.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// All that the host sent was read.
    pub(super) fn end_of_data(&mut self) {
        self.readable = false;
        self.say_shut(if self.gone || self.deaf { SHUT_BOTH } else { SHUT_SEND });
    }

    /// A read failed. A reset comes once, before what was sent earlier.
    pub(super) fn read_failed(&mut self, error: &io::Error) -> Result<(), Broken> {
        if error.kind() != io::ErrorKind::ConnectionReset || self.failed {
            return Err(Broken);
        }
        self.failed = true;
        self.deafen();
        Ok(())
    }

    fn say_shut(&mut self, flags: u32) {
        if self.said_shut | flags != self.said_shut {
            self.said_shut |= flags;
            self.want(op::SHUTDOWN);
        }
    }

    /// The guest's SHUTDOWN.
    pub(super) fn hear_shut(&mut self, flags: u32) {
        self.heard_shut |= flags & SHUT_BOTH;
        if self.heard_shut & SHUT_RECEIVE != 0 {
            self.shut_host(Shutdown::Read);
        }
    }

    /// Returns true if the guest has said that it sends no more.
    pub(super) fn has_guest_finished(&self) -> bool {
        self.heard_shut & SHUT_SEND != 0
    }

    /// Returns true if the host has not taken all that the guest sent.
    pub(super) fn is_flushing(&self) -> bool {
        self.socket.is_some() && self.outbox.is_waiting()
    }

    /// Does what follows once the host has taken all. Returns true if the connection is over.
    pub(super) fn settle(&mut self) -> bool {
        if self.is_flushing() {
            return false;
        }
        if self.has_guest_finished() && !self.finished {
            self.finished = true;
            self.shut_host(Shutdown::Write);
        }
        self.phase == Phase::Lingering || self.heard_shut == SHUT_BOTH
    }

    fn shut_host(&self, how: Shutdown) {
        // It may have left.
        let _ = self.socket().map(|socket| rustix::net::shutdown(socket, how));
    }

    /// The host takes no more.
    fn deafen(&mut self) {
        let lost = self.outbox.clear();
        self.credit.forward(lost);
        self.deaf = true;
        let all = self.said_shut & SHUT_SEND != 0;
        self.say_shut(if all { SHUT_BOTH } else { SHUT_RECEIVE });
    }

    /// The guest sends these bytes.
    pub(super) fn receive(&mut self, dma: &Dma, data: Segments<'_>, end: bool) -> Result<(), Broken> {
        let len = data.len() as u32;
        if self.phase != Phase::Open || self.has_guest_finished() || !self.credit.receive(len) {
            return Err(Broken);
        }
        let was_waiting = self.outbox.is_waiting();
        let whole = match self.kind {
            Kind::Stream => !was_waiting,
            Kind::SeqPacket => end && self.outbox.is_empty(),
        };
        let Some(socket) = self.socket.as_ref().filter(|_| !self.deaf) else {
            self.credit.forward(len);
            self.tell_if_due();
            return Ok(());
        };
        let sent = if whole && len > 0 { dma.send(socket, data) } else { Ok(0) };
        let sent = match sent {
            Ok(sent) => sent as u32,
            Err(DmaIoError::Io(e)) if e.kind() == io::ErrorKind::WouldBlock => 0,
            Err(DmaIoError::Io(e)) if is_gone(&e) => {
                self.credit.forward(len);
                self.deafen();
                return Ok(());
            }
            Err(_) => return Err(Broken),
        };
        self.credit.forward(sent);
        if sent < len || len == 0 {
            let kept = self.outbox.push(dma, data.skip(sent.into()), end);
            if !kept.unwrap_or(false) {
                return Err(Broken);
            }
            if self.kind == Kind::SeqPacket && !whole && !was_waiting {
                return self.flush();
            }
        }
        self.tell_if_due();
        Ok(())
    }

    /// Gives the host what it takes now.
    pub(super) fn flush(&mut self) -> Result<(), Broken> {
        let Some(socket) = self.socket.as_ref() else { return Ok(()) };
        match self.outbox.send(socket.as_fd()) {
            Ok(sent) => self.credit.forward(sent),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if is_gone(&e) => self.deafen(),
            Err(_) => return Err(Broken),
        }
        self.tell_if_due();
        Ok(())
    }

    /// A sender of messages waits until a whole one fits.
    fn tell_if_due(&mut self) {
        let due = match self.kind {
            Kind::Stream => self.credit.is_update_due(),
            Kind::SeqPacket => self.credit.untold() > 0,
        };
        if due && self.phase == Phase::Open {
            self.want(op::CREDIT_UPDATE);
        }
    }
}

/// The other side has closed its socket, or receives no more.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}
