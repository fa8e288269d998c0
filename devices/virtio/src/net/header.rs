//! The header before each packet (virtio 1.2, section 5.1.6).

use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_ECN, VIRTIO_NET_F_HOST_TSO4, VIRTIO_NET_F_HOST_TSO6,
    VIRTIO_NET_HDR_F_NEEDS_CSUM, VIRTIO_NET_HDR_GSO_ECN, VIRTIO_NET_HDR_GSO_NONE, VIRTIO_NET_HDR_GSO_TCPV4,
    VIRTIO_NET_HDR_GSO_TCPV6,
};

/// Its length: with VERSION_1, which every driver of ours has negotiated, `num_buffers` is always there.
pub const HEADER_LEN: usize = 12;
/// The longest packet with its header: 64 KiB of segmentation offload behind Ethernet and VLAN headers.
pub(super) const MAX_PACKET: u64 = HEADER_LEN as u64 + 18 + 65536;
/// Where `num_buffers` stands.
pub(super) const NUM_BUFFERS: u64 = 10;

/// The header of a packet that the driver sends, as the host shall see it: copied out of guest memory once, checked
/// against the negotiated features, without flags that are the device's and fields that no flag makes valid. `None` if
/// the driver asks for what it has not negotiated. The receiver checks that the offsets fit the packet.
pub(super) fn checked(raw: [u8; HEADER_LEN], features: u128) -> Option<[u8; HEADER_LEN]> {
    let has = |bit: u32| features & 1 << bit != 0;
    let [flags, gso, h0, h1, g0, g1, checksum @ .., _, _] = raw;
    let segmentation = [h0, h1, g0, g1];
    let flags = flags & VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    let ecn = u32::from(gso) & VIRTIO_NET_HDR_GSO_ECN != 0;
    let csum = flags == 0 || has(VIRTIO_NET_F_CSUM);
    let gso_fits = match u32::from(gso) & !VIRTIO_NET_HDR_GSO_ECN {
        VIRTIO_NET_HDR_GSO_NONE => !ecn,
        VIRTIO_NET_HDR_GSO_TCPV4 => has(VIRTIO_NET_F_HOST_TSO4) && flags != 0,
        VIRTIO_NET_HDR_GSO_TCPV6 => has(VIRTIO_NET_F_HOST_TSO6) && flags != 0,
        _ => false,
    };
    if !csum || !gso_fits || (ecn && !has(VIRTIO_NET_F_HOST_ECN)) {
        return None;
    }
    let [len0, len1, size0, size1] = if gso == 0 { [0; 4] } else { segmentation };
    let [start0, start1, offset0, offset1] = if flags == 0 { [0; 4] } else { checksum };
    Some([flags, gso, len0, len1, size0, size1, start0, start1, offset0, offset1, 0, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, gso: u8) -> [u8; HEADER_LEN] {
        [flags, gso, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    }

    const ALL: u128 = 1 << VIRTIO_NET_F_CSUM
        | 1 << VIRTIO_NET_F_HOST_TSO4
        | 1 << VIRTIO_NET_F_HOST_TSO6
        | 1 << VIRTIO_NET_F_HOST_ECN;

    #[test]
    fn keeps_the_fields_that_mean_something() {
        assert_eq!(checked(header(0, 0), 0), Some([0; HEADER_LEN]));
        assert_eq!(checked(header(1, 0), ALL), Some([1, 0, 0, 0, 0, 0, 5, 6, 7, 8, 0, 0]));
        assert_eq!(checked(header(7, 1), ALL), Some([1, 1, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]));
        assert_eq!(checked(header(1, 0x84), ALL), Some([1, 0x84, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0]));
    }

    #[test]
    fn b12_refuses_offloads_that_were_not_negotiated() {
        for flags in 0..=255u8 {
            for gso in 0..=255u8 {
                let needs_csum = flags & 1 != 0;
                let none = checked(header(flags, gso), 0).is_some();
                assert_eq!(none, !needs_csum && gso == 0, "{flags:#x} {gso:#x} without features");
                let all = checked(header(flags, gso), ALL).is_some();
                let tcp = matches!(gso & 0x7f, 1 | 4) && needs_csum;
                assert_eq!(all, gso == 0 || tcp, "{flags:#x} {gso:#x} with all features");
                let no_ecn = checked(header(flags, gso), ALL & !(1 << VIRTIO_NET_F_HOST_ECN)).is_some();
                assert_eq!(no_ecn, all && gso & 0x80 == 0, "{flags:#x} {gso:#x} without ECN");
            }
        }
        let only4 = ALL & !(1 << VIRTIO_NET_F_HOST_TSO6);
        assert!(checked(header(1, 4), only4).is_none());
        let only6 = ALL & !(1 << VIRTIO_NET_F_HOST_TSO4);
        assert!(checked(header(1, 1), only6).is_none());
    }
}
