//! What a network card is plugged into.

use std::io;
use std::os::fd::BorrowedFd;

use ossature_bus::Syscall;
use ossature_memory::{Dma, DmaIoError, Segments};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_TSO6,
};

use super::header::HEADER_LEN;

/// Which unfinished packets the guest accepts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Without a checksum.
    pub checksum: bool,
    /// TCP over IPv4 that is longer than a frame.
    pub tso4: bool,
    /// TCP over IPv6 that is longer than a frame.
    pub tso6: bool,
    /// The same with congestion notification.
    pub ecn: bool,
}

impl Offloads {
    /// What the negotiated features say. Segmentation rests on checksums: without them it is off, whatever a
    /// driver has accepted (5.1.3.1).
    pub(super) fn negotiated(features: u128) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksum && has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksum && has(VIRTIO_NET_F_GUEST_TSO6);
        Self { checksum, tso4, tso6, ecn: (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN) }
    }
}

/// A network as [`Net`](crate::Net) uses it: whole packets, each behind a virtio-net header of [`HEADER_LEN`]
/// bytes, moved straight between the host and guest memory.
pub trait NetIo: Send + Sync + 'static {
    /// A non-blocking descriptor that polls readable when a packet waits, and writable when one can be sent.
    fn fd(&self) -> BorrowedFd<'_>;
    /// Says which packets [`receive`](Self::receive) may give from now on.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
    /// Takes the next packet into the segments. Returns its length with the header, more than the segments hold if it
    /// did not fit: what did not fit is lost ([`Dma::readv_spilling`] finds out). `WouldBlock` says that no packet
    /// waits.
    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError>;
    /// Sends a packet: the header, then the segments. It has to check the header's offsets against the packet.
    /// `WouldBlock` says that the packet may be sent once the descriptor polls writable; after any other error it is
    /// lost.
    fn send(&self, mem: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError>;
    /// The system calls that the methods above make.
    fn syscalls(&self) -> &'static [Syscall];
}
