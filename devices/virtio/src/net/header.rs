//! The header before each packet (virtio 1.2, section 5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6, VIRTIO_NET_HDR_GSO_UDP_L4,
};

/// Its length: with VERSION_1, which every driver of ours has negotiated, `num_buffers` is always there.
pub const HEADER_LEN: usize = 12;
/// The longest packet with its header: 64 KiB of segmentation offload behind Ethernet and VLAN headers.
pub(super) const MAX_PACKET: u64 = HEADER_LEN as u64 + 18 + 65536;
/// Destination, source and type.
pub(super) const ETHERNET_HEADER: u64 = 14;
/// Where `num_buffers` stands.
pub(super) const NUM_BUFFERS: u64 = 10;

/// Where the checksum stands in a TCP header.
const TCP_CHECKSUM: u16 = 16;
/// Where the checksum stands in a UDP header.
const UDP_CHECKSUM: u16 = 6;

/// The header of a packet with `frame_len` bytes behind it that the driver sends, as the host shall see it: copied out of
/// guest memory once, checked against the negotiated features and the length of the frame, without flags that are the
/// device's and fields that no flag makes valid. `None` if the driver asks for what it has not negotiated, or for what
/// lies beyond the frame.
pub(super) fn checked(raw: [u8; HEADER_LEN], features: u128, frame_len: u64) -> Option<[u8; HEADER_LEN]> {
    let has = |bit: u32| features & 1 << bit != 0;
    let [flags, gso, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = raw;
    let (hdr_len, gso_size) = (u16::from_le_bytes([h0, h1]), u16::from_le_bytes([g0, g1]));
    let (start, offset) = (u16::from_le_bytes([s0, s1]), u16::from_le_bytes([o0, o1]));
    if flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8 == 0 {
        // Segments need their checksums made.
        return (gso == 0).then_some([0; HEADER_LEN]);
    }
    // Two bytes of checksum, behind the Ethernet header and in the frame.
    let headers = u64::from(start) + u64::from(offset) + 2;
    if !has(VIRTIO_NET_F_CSUM) || u64::from(start) < ETHERNET_HEADER || headers > frame_len {
        return None;
    }
    let mut header = [VIRTIO_NET_HDR_F_NEEDS_CSUM as u8, gso, 0, 0, 0, 0, s0, s1, o0, o1, 0, 0];
    if gso == 0 {
        return Some(header);
    }
    let ecn = u32::from(gso) & VIRTIO_NET_HDR_GSO_ECN != 0;
    let (negotiated, checksum_at) = match u32::from(gso) & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_TCPV4 => (has(VIRTIO_NET_F_HOST_TSO4), TCP_CHECKSUM),
        VIRTIO_NET_HDR_GSO_TCPV6 => (has(VIRTIO_NET_F_HOST_TSO6), TCP_CHECKSUM),
        VIRTIO_NET_HDR_GSO_UDP_L4 => (has(VIRTIO_NET_F_HOST_USO) && !ecn, UDP_CHECKSUM),
        _ => return None,
    };
    let segments = negotiated && offset == checksum_at && gso_size != 0 && u64::from(hdr_len) <= frame_len;
    if !segments || (ecn && !has(VIRTIO_NET_F_HOST_ECN)) {
        return None;
    }
    // A length that is too small is a bad hint, and nothing else (5.1.6.2).
    let hdr_len = u64::from(hdr_len).max(headers) as u16;
    for (to, from) in header.iter_mut().skip(2).zip([hdr_len.to_le_bytes(), gso_size.to_le_bytes()].concat())
    {
        *to = from;
    }
    Some(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// With a checksum of TCP or UDP behind an IPv4 header.
    fn header(flags: u8, gso: u8) -> [u8; HEADER_LEN] {
        let checksum = if gso & 0x7f == 5 { 6 } else { 16 };
        [flags, gso, 60, 0, 3, 4, 34, 0, checksum, 0, 9, 10]
    }

    const FRAME: u64 = 1514;
    const ALL: u128 = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_USO
        | 1 << VIRTIO_NET_F_HOST_ECN;

    #[test]
    fn keeps_the_fields_that_mean_something() {
        assert_eq!(checked(header(0, 0), 0, FRAME), Some([0; HEADER_LEN]));
        assert_eq!(checked(header(1, 0), ALL, FRAME), Some([1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]));
        assert_eq!(checked(header(7, 1), ALL, FRAME), Some([1, 1, 60, 0, 3, 4, 34, 0, 16, 0, 0, 0]));
        assert_eq!(checked(header(1, 0x84), ALL, FRAME), Some([1, 0x84, 60, 0, 3, 4, 34, 0, 16, 0, 0, 0]));
        assert_eq!(checked(header(1, 5), ALL, FRAME), Some([1, 5, 60, 0, 3, 4, 34, 0, 6, 0, 0, 0]));
    }

    #[test]
    fn b12_refuses_offloads_that_were_not_negotiated() {
        let passes = |flags, gso, features: u128| checked(header(flags, gso), features, FRAME).is_some();
        for flags in 0..=255u8 {
            for gso in 0..=255u8 {
                let needs_csum = flags & 1 != 0;
                let none = passes(flags, gso, 0);
                assert_eq!(none, !needs_csum && gso == 0, "{flags:#x} {gso:#x} without features");
                let all = passes(flags, gso, ALL);
                let segments = (matches!(gso & 0x7f, 1 | 4) || gso == 5) && needs_csum;
                assert_eq!(all, gso == 0 || segments, "{flags:#x} {gso:#x} with all features");
                let no_ecn = passes(flags, gso, ALL & !(1 << VIRTIO_NET_F_HOST_ECN));
                assert_eq!(no_ecn, all && gso & 0x80 == 0, "{flags:#x} {gso:#x} without ECN");
            }
        }
        for (gso, feature) in
            [(1, VIRTIO_NET_F_HOST_TSO4), (4, VIRTIO_NET_F_HOST_TSO6), (5, VIRTIO_NET_F_HOST_USO)]
        {
            assert!(passes(1, gso, ALL) && !passes(1, gso, ALL & !(1 << feature)), "type {gso}");
        }
    }

    #[test]
    fn b12_refuses_a_checksum_beyond_the_packet() {
        let at = |start: u16, offset: u16, gso, len| {
            let ([s0, s1], [o0, o1]) = (start.to_le_bytes(), offset.to_le_bytes());
            checked([1, gso, 60, 0, 3, 4, s0, s1, o0, o1, 0, 0], ALL, len).is_some()
        };
        assert!(at(34, 16, 0, 52) && !at(34, 16, 0, 51));
        assert!(at(14, 0, 0, 16) && !at(13, 0, 0, 16), "the Ethernet header has no checksum");
        for (start, offset) in [(u16::MAX, 16), (34, u16::MAX), (u16::MAX, u16::MAX), (1513, 0)] {
            for gso in [0, 1, 4, 5] {
                assert!(!at(start, offset, gso, FRAME), "{start} {offset} {gso}");
            }
        }
        // Segments of TCP have their checksum where TCP has it.
        assert!(at(34, 16, 1, FRAME) && !at(34, 6, 1, FRAME) && !at(34, 16, 5, FRAME));
    }

    #[test]
    fn b12_refuses_segments_of_no_size_and_headers_longer_than_the_packet() {
        let with = |hdr_len: u16, size: u16| {
            let ([h0, h1], [g0, g1]) = (hdr_len.to_le_bytes(), size.to_le_bytes());
            checked([1, 1, h0, h1, g0, g1, 34, 0, 16, 0, 0, 0], ALL, FRAME)
        };
        assert_eq!((with(60, 0), with(1515, 1448), with(u16::MAX, 1448)), (None, None, None));
        assert!(with(1514, u16::MAX).is_some());
        // One that is too short is made to hold the checksum.
        for hdr_len in [0, 1, 51] {
            assert_eq!(with(hdr_len, 1448).map(|header| header[2..4].to_vec()), Some(vec![52, 0]));
        }
    }
}
