//! The VMM's hand on a card that runs.

use std::fs::File;
use std::io;
use std::sync::Arc;

use ossature_bus::RateLimits;

use super::shared::Card;

/// Controls the link of a network card from any thread, whoever moves its packets.
#[derive(Clone, Debug)]
pub struct LinkHandle(pub(super) Arc<Card>);

impl LinkHandle {
    /// Plugs the cable in or pulls it out: the guest is told. While the link is down, packets are lost in both
    /// directions. The card is made with its link up.
    pub fn set_link(&self, up: bool) {
        self.0.change(|set| set.link_down = !up);
        self.0.link_changed();
        self.0.raise();
    }

    /// Asks the guest to announce its addresses, such as after it has moved to another host (`GUEST_ANNOUNCE`).
    pub fn announce(&self) {
        self.0.change(|set| set.announce = true);
        self.0.raise();
    }
}

/// Controls a network card from any thread, for as long as one likes.
#[derive(Clone, Debug)]
pub struct NetHandle(pub(super) Arc<Card>);

impl NetHandle {
    /// What controls its link alone.
    pub fn link(&self) -> LinkHandle {
        LinkHandle(Arc::clone(&self.0))
    }

    /// See [`LinkHandle::set_link`].
    pub fn set_link(&self, up: bool) {
        self.link().set_link(up);
    }

    /// See [`LinkHandle::announce`].
    pub fn announce(&self) {
        self.link().announce();
    }

    /// Other limits on packets to the guest, and on packets from it. An operation is a packet.
    pub fn set_limits(&self, to_guest: RateLimits, from_guest: RateLimits) {
        self.0.rx_limiter.set(to_guest);
        self.0.tx_limiter.set(from_guest);
    }

    /// Writes each packet that the guest sends or is given to `file` from now on, in the format of libpcap: at most
    /// `snap` bytes of each, at least 64 and at most 256 KiB. A capture before it ends. If writing fails, the capture
    /// ends, and the card goes on.
    ///
    /// Packets are as the guest sees them: with segmentation offload longer than a frame, and without their checksums.
    /// A file that makes writers wait, such as a FIFO, makes the card wait.
    pub fn start_capture(&self, file: File, snap: u32) -> io::Result<()> {
        self.0.capture.start(file, snap)
    }

    /// Ends the capture. Returns true if there was one, and all of it is in the file.
    pub fn stop_capture(&self) -> io::Result<bool> {
        self.0.capture.stop()
    }
}
