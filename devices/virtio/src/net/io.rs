//! What a network card is plugged into.

use std::io;
use std::os::fd::BorrowedFd;

use ossature_bus::Syscall;
use ossature_memory::{Dma, DmaIoError, Segments};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6, VIRTIO_NET_F_HOST_ECN,
    VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6, VIRTIO_NET_F_HOST_USO,
};

use super::header::HEADER_LEN;

/// Kinds of unfinished packets, which whoever gets them finishes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Offloads {
    /// Without a checksum.
    pub checksum: bool,
    /// TCP over IPv4 that is longer than a frame.
    pub tso4: bool,
    /// TCP over IPv6 that is longer than a frame.
    pub tso6: bool,
    /// The same with congestion notification.
    pub ecn: bool,
    /// UDP over IPv4 and IPv6 that is longer than a frame.
    pub uso: bool,
}

impl Offloads {
    /// Only finished packets.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every kind.
    pub fn all() -> Self {
        Self { checksum: true, tso4: true, tso6: true, ecn: true, uso: true }
    }

    /// The kinds that both have.
    pub(super) fn and(self, other: Self) -> Self {
        Self {
            checksum: self.checksum && other.checksum,
            tso4: self.tso4 && other.tso4,
            tso6: self.tso6 && other.tso6,
            ecn: self.ecn && other.ecn,
            uso: self.uso && other.uso,
        }
    }

    /// The kinds that the guest accepts, as these feature bits say. Segmentation rests on checksums: without them it is
    /// off, whatever a driver has accepted (5.1.3.1). Linux takes USO for both versions of IP or for none.
    pub(super) fn accepted(features: u128) -> Self {
        let has = |bit: u32| features & 1 << bit != 0;
        let checksum = has(VIRTIO_NET_F_GUEST_CSUM);
        let tso4 = checksum && has(VIRTIO_NET_F_GUEST_TSO4);
        let tso6 = checksum && has(VIRTIO_NET_F_GUEST_TSO6);
        let ecn = (tso4 || tso6) && has(VIRTIO_NET_F_GUEST_ECN);
        let uso = checksum && has(VIRTIO_NET_F_GUEST_USO4) && has(VIRTIO_NET_F_GUEST_USO6);
        Self { checksum, tso4, tso6, ecn, uso }
    }

    /// The feature bits by which a driver accepts these kinds.
    pub(super) fn guest_features(self) -> u128 {
        let Self { checksum, tso4, tso6, ecn, uso } = self;
        bits([
            (checksum, VIRTIO_NET_F_GUEST_CSUM),
            (tso4, VIRTIO_NET_F_GUEST_TSO4),
            (tso6, VIRTIO_NET_F_GUEST_TSO6),
            (ecn, VIRTIO_NET_F_GUEST_ECN),
            (uso, VIRTIO_NET_F_GUEST_USO4),
            (uso, VIRTIO_NET_F_GUEST_USO6),
        ])
    }

    /// The feature bits by which the host accepts these kinds.
    pub(super) fn host_features(self) -> u128 {
        let Self { checksum, tso4, tso6, ecn, uso } = self;
        bits([
            (checksum, VIRTIO_NET_F_CSUM),
            (tso4, VIRTIO_NET_F_HOST_TSO4),
            (tso6, VIRTIO_NET_F_HOST_TSO6),
            (ecn, VIRTIO_NET_F_HOST_ECN),
            (uso, VIRTIO_NET_F_HOST_USO),
        ])
    }
}

fn bits<const N: usize>(features: [(bool, u32); N]) -> u128 {
    features.into_iter().filter(|(on, _)| *on).fold(0, |all, (_, bit)| all | 1 << bit)
}

/// Packets that [`NetIo::send`] took and that were lost after that.
#[derive(Debug)]
#[non_exhaustive]
pub struct Unsent {
    /// How many.
    pub packets: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// Why the last of them was lost.
    pub error: io::Error,
}

impl Unsent {
    /// So many packets of so many bytes in all, for this reason.
    pub fn new(packets: u64, bytes: u64, error: io::Error) -> Self {
        Self { packets, bytes, error }
    }
}

/// A network as one pair of queues of [`Net`](crate::Net) uses it: whole packets, each behind a virtio-net header of
/// [`HEADER_LEN`] bytes, moved between the host and guest memory.
///
/// Packets are received and sent by one thread at a time. The other methods are called from any.
pub trait NetIo: Send + Sync + 'static {
    /// A non-blocking descriptor that polls readable when a packet waits, and writable when one can be sent. The same
    /// for the life of the network.
    fn fd(&self) -> BorrowedFd<'_>;
    /// The kinds of unfinished packets that it can send, and give, behind a header that says so.
    fn offloads(&self) -> Offloads;
    /// Says which packets [`receive`](Self::receive) may give from now on.
    fn set_offloads(&self, offloads: Offloads) -> io::Result<()>;
    /// Says whether the driver uses this pair of queues: the host gives no packets to one that it does not. A network is
    /// in use until told otherwise.
    fn set_active(&self, active: bool) -> io::Result<()>;
    /// Returns false while there is nobody at the other end, as far as one can know: the link is down. The descriptor
    /// polls readable when that changes.
    fn is_connected(&self) -> bool;
    /// Takes the next packet into the segments. Returns its length with the header, more than the segments hold if it
    /// did not fit: what did not fit is lost ([`Dma::readv_spilling`] finds out). What is shorter than a header is no
    /// packet, and dropped. `WouldBlock` says that no packet waits.
    fn receive(&self, mem: &Dma, to: Segments<'_>) -> Result<usize, DmaIoError>;
    /// Sends a packet: the header, then the segments. It may put a copy off until the next [`flush`](Self::flush).
    /// `WouldBlock` says that the packet may be sent once the descriptor polls writable; after any other error it is
    /// lost.
    fn send(&self, mem: &Dma, header: &[u8; HEADER_LEN], from: Segments<'_>) -> Result<(), DmaIoError>;
    /// Sends what was put off, as far as the host takes it: called after a batch of packets, and when the descriptor
    /// polls writable.
    fn flush(&self) -> Result<(), Unsent>;
    /// The system calls that the methods above make, and those of the card itself: timerfd_create, timerfd_settime and
    /// close for its limits, eventfd2 and write for events, write for captures.
    fn syscalls(&self) -> &'static [Syscall];
}
