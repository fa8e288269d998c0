//! What the guest has sent and the host's socket has not taken yet.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

use ossature_memory::{Dma, DmaError, Segments};
use rustix::net::{SendAncillaryBuffer, SendFlags, sendmsg};

use super::packet::Kind;

/// Messages that wait are at most so many times fewer than the bytes that may: a guest's credit does not bound those that
/// are short, and each takes some memory.
const BYTES_A_MESSAGE: usize = 32;

/// Bytes, bounded by the credit that the guest is given; of messages also their ends.
#[derive(Debug)]
pub(super) struct Outbox {
    kind: Kind,
    bytes: VecDeque<u8>,
    /// Lengths of the whole messages at the front.
    messages: VecDeque<u32>,
    /// Bytes of the message at the back that has no end yet.
    partial: u32,
    /// Bytes that the guest may have waiting.
    alloc: u32,
}

impl Outbox {
    pub(super) fn new(kind: Kind, alloc: u32) -> Self {
        Self { kind, bytes: VecDeque::new(), messages: VecDeque::new(), partial: 0, alloc }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Returns true if something waits for the socket: not for the rest of its message.
    pub(super) fn is_waiting(&self) -> bool {
        match self.kind {
            Kind::Stream => !self.bytes.is_empty(),
            Kind::SeqPacket => !self.messages.is_empty(),
        }
    }

    /// Forgets all; returns how many bytes.
    pub(super) fn clear(&mut self) -> u32 {
        let len = self.bytes.len() as u32;
        *self = Self::new(self.kind, self.alloc);
        len
    }

    /// Adds the bytes of `data`; `end` if a message ends with them. Returns false if there are too many messages.
    pub(super) fn push(&mut self, dma: &Dma, data: Segments<'_>, end: bool) -> Result<bool, DmaError> {
        let mut piece = [0; 4096];
        let mut rest = data;
        while !rest.is_empty() {
            let len = dma.gather(rest, &mut piece)?;
            let Some(piece) = piece.get(..len).filter(|piece| !piece.is_empty()) else { break };
            self.bytes.extend(piece);
            self.partial = self.partial.wrapping_add(piece.len() as u32);
            rest = rest.skip(piece.len() as u64);
        }
        if self.kind == Kind::SeqPacket && end && self.partial != 0 {
            self.messages.push_back(std::mem::take(&mut self.partial));
        }
        Ok(self.messages.len() <= self.alloc as usize / BYTES_A_MESSAGE)
    }

    /// Sends what the socket takes; returns how many bytes. `WouldBlock` if it takes nothing now.
    pub(super) fn send(&mut self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        let mut sent = 0;
        while self.is_waiting() {
            match self.send_next(socket) {
                Ok(len) => sent += len,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock && sent > 0 => break,
                Err(e) => return Err(e),
            }
        }
        if self.bytes.is_empty() {
            // A connection that was slow once need not keep the memory.
            self.bytes = VecDeque::new();
        }
        Ok(sent)
    }

    fn send_next(&mut self, socket: BorrowedFd<'_>) -> io::Result<u32> {
        let len = match self.kind {
            Kind::Stream => self.bytes.len(),
            Kind::SeqPacket => self.messages.front().copied().unwrap_or(0) as usize,
        };
        let (front, back) = self.bytes.as_slices();
        let front = front.get(..len).unwrap_or(front);
        let back = back.get(..len - front.len()).unwrap_or(back);
        let slices = [IoSlice::new(front), IoSlice::new(back)];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        let sent = loop {
            match sendmsg(socket, &slices, &mut SendAncillaryBuffer::default(), flags) {
                Err(rustix::io::Errno::INTR) => {}
                sent => break sent?,
            }
        };
        self.bytes.drain(..sent.min(len));
        if self.kind == Kind::SeqPacket {
            self.messages.pop_front();
        }
        Ok(sent as u32)
    }
}
