//! Who may send how much (virtio 1.2, 5.10.6.3): counters of bytes that wrap, of which the guest's may lie.

use super::packet::Header;

/// Both directions of one connection.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Credit {
    /// How much of what the guest sends is kept here at most.
    alloc: u32,
    /// Bytes that the guest has sent.
    received: u32,
    /// Bytes of those that have gone on to the host.
    forwarded: u32,
    /// What the guest has last been told of `forwarded`.
    told: u32,
    /// How much the guest says it keeps.
    peer_alloc: u32,
    /// How much of what it was sent the guest says it has used.
    peer_forwarded: u32,
    /// Bytes that the guest was sent.
    sent: u32,
}

impl Credit {
    /// Nothing was sent yet; the guest may send `alloc` bytes.
    pub(super) fn new(alloc: u32) -> Self {
        Self { alloc, ..Self::default() }
    }

    /// All counters have come to `start`.
    #[cfg(test)]
    pub(super) fn starting_at(alloc: u32, start: u32) -> Self {
        let mut credit = Self::new(alloc);
        (credit.received, credit.forwarded, credit.told, credit.sent) = (start, start, start, start);
        credit
    }

    /// Takes note of what a packet of the guest's says.
    pub(super) fn hear(&mut self, header: &Header) {
        self.peer_alloc = header.buf_alloc;
        self.peer_forwarded = header.fwd_cnt;
    }

    /// Bytes that the guest has room for. None where its counters make no sense, which hurts only its own connection.
    pub(super) fn peer_room(&self) -> u32 {
        self.peer_alloc.saturating_sub(self.sent.wrapping_sub(self.peer_forwarded))
    }

    /// The most that the guest ever has room for, by what it says.
    pub(super) fn peer_alloc(&self) -> u32 {
        self.peer_alloc
    }

    /// The guest was sent `len` bytes.
    pub(super) fn sent(&mut self, len: u32) {
        self.sent = self.sent.wrapping_add(len);
    }

    /// The guest has sent `len` bytes. Returns false if that is more than it may.
    #[must_use]
    pub(super) fn receive(&mut self, len: u32) -> bool {
        let held = self.received.wrapping_sub(self.forwarded);
        let fits = len <= self.alloc.saturating_sub(held);
        if fits {
            self.received = self.received.wrapping_add(len);
        }
        fits
    }

    /// So many bytes have gone on: never more than were received.
    pub(super) fn forward(&mut self, len: u32) {
        self.forwarded = self.forwarded.wrapping_add(len);
    }

    /// Returns true if the guest should be told now, before it has to wait.
    pub(super) fn is_update_due(&self) -> bool {
        self.untold() >= self.alloc / 2
    }

    /// Bytes that have gone on and of which the guest does not know yet.
    pub(super) fn untold(&self) -> u32 {
        self.forwarded.wrapping_sub(self.told)
    }

    /// Puts our counters into a packet to the guest.
    pub(super) fn tell(&mut self, header: &mut Header) {
        self.told = self.forwarded;
        (header.buf_alloc, header.fwd_cnt) = (self.alloc, self.forwarded);
    }
}
