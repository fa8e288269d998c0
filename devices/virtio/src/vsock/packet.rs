//! The header of each packet (virtio 1.2, 5.10.6), as the wire has it and as values.

use ossature_memory::vm_memory::ByteValued;
use virtio_vsock::packet::{PKT_HEADER_SIZE, PacketHeader};

/// Bytes of a packet before its data.
pub(super) const HEADER_LEN: usize = PKT_HEADER_SIZE;
/// The most data that a packet has, either way.
pub(super) const MAX_DATA: u32 = 64 << 10;
/// The host's address.
pub(super) const HOST_CID: u64 = 2;

/// What a packet says.
pub(super) mod op {
    pub(in super::super) const REQUEST: u16 = 1;
    pub(in super::super) const RESPONSE: u16 = 2;
    pub(in super::super) const RST: u16 = 3;
    pub(in super::super) const SHUTDOWN: u16 = 4;
    pub(in super::super) const RW: u16 = 5;
    pub(in super::super) const CREDIT_UPDATE: u16 = 6;
    pub(in super::super) const CREDIT_REQUEST: u16 = 7;
}

/// SHUTDOWN: the sender receives no more.
pub(super) const SHUT_RECEIVE: u32 = 1;
/// SHUTDOWN: the sender sends no more.
pub(super) const SHUT_SEND: u32 = 2;
/// RW on a seqpacket socket: the message ends here.
pub(super) const END_OF_MESSAGE: u32 = 1;

/// What a socket carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Bytes.
    Stream,
    /// Messages.
    SeqPacket,
}

impl Kind {
    /// The kind of this number, if there is one.
    pub(super) fn from_wire(number: u16) -> Option<Self> {
        match number {
            1 => Some(Self::Stream),
            2 => Some(Self::SeqPacket),
            _ => None,
        }
    }

    pub(super) fn to_wire(self) -> u16 {
        match self {
            Self::Stream => 1,
            Self::SeqPacket => 2,
        }
    }
}

/// A header's values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    /// Bytes of data.
    pub(super) len: u32,
    /// See [`Kind`].
    pub(super) kind: u16,
    /// See [`op`].
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    /// A packet from the host to the guest.
    pub(super) fn to_guest(guest_cid: u64, key: Key, kind: u16, op: u16) -> Self {
        Self {
            src_cid: HOST_CID,
            dst_cid: guest_cid,
            src_port: key.host,
            dst_port: key.guest,
            kind,
            op,
            ..Self::default()
        }
    }

    /// What the wire says. The bytes have been read once.
    #[inline]
    pub(super) fn parse(raw: &PacketHeader) -> Self {
        let bytes = raw.as_slice();
        Self {
            src_cid: u64::from_le_bytes(at(bytes, 0)),
            dst_cid: u64::from_le_bytes(at(bytes, 8)),
            src_port: u32::from_le_bytes(at(bytes, 16)),
            dst_port: u32::from_le_bytes(at(bytes, 20)),
            len: u32::from_le_bytes(at(bytes, 24)),
            kind: u16::from_le_bytes(at(bytes, 28)),
            op: u16::from_le_bytes(at(bytes, 30)),
            flags: u32::from_le_bytes(at(bytes, 32)),
            buf_alloc: u32::from_le_bytes(at(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(at(bytes, 40)),
        }
    }

    /// As the wire has it.
    #[inline]
    pub(super) fn raw(&self) -> PacketHeader {
        let mut raw = PacketHeader::default();
        let bytes = raw.as_mut_slice();
        put(bytes, 0, self.src_cid.to_le_bytes());
        put(bytes, 8, self.dst_cid.to_le_bytes());
        put(bytes, 16, self.src_port.to_le_bytes());
        put(bytes, 20, self.dst_port.to_le_bytes());
        put(bytes, 24, self.len.to_le_bytes());
        put(bytes, 28, self.kind.to_le_bytes());
        put(bytes, 30, self.op.to_le_bytes());
        put(bytes, 32, self.flags.to_le_bytes());
        put(bytes, 36, self.buf_alloc.to_le_bytes());
        put(bytes, 40, self.fwd_cnt.to_le_bytes());
        raw
    }
}

/// Says that `len` bytes of data follow.
#[inline]
pub(super) fn set_len(raw: &mut PacketHeader, len: u32) {
    put(raw.as_mut_slice(), 24, len.to_le_bytes());
}

// The offsets are constants inside of a header.

#[inline]
fn at<const N: usize>(bytes: &[u8], offset: usize) -> [u8; N] {
    bytes.get(offset..).and_then(|bytes| bytes.first_chunk()).copied().unwrap_or([0; N])
}

#[inline]
fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    if let Some(place) = bytes.get_mut(offset..).and_then(|bytes| bytes.first_chunk_mut()) {
        *place = value;
    }
}

/// What tells a connection from others: the CIDs are always the guest's and the host's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// The guest's port.
    pub(super) guest: u32,
    /// The host's.
    pub(super) host: u32,
}
