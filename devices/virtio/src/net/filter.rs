//! Which packets the driver wants to receive (virtio 1.2, section 5.1.6.5.1 to 5.1.6.5.3).

use std::collections::BTreeSet;

use virtio_bindings::virtio_net::{
    VIRTIO_NET_CTRL_RX_ALLMULTI, VIRTIO_NET_CTRL_RX_ALLUNI, VIRTIO_NET_CTRL_RX_NOBCAST,
    VIRTIO_NET_CTRL_RX_NOMULTI, VIRTIO_NET_CTRL_RX_NOUNI, VIRTIO_NET_CTRL_RX_PROMISC, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_VLAN,
};

/// Addresses that a card keeps in each of its two tables. A driver that has more gets all packets of that kind.
pub(super) const TABLE: usize = 64;
/// Where the bytes are that a filter looks at: destination, source, type, and the tag of a VLAN.
pub(super) const LOOK: usize = 16;
/// The type of a frame with a VLAN's tag.
const TAGGED: [u8; 2] = [0x81, 0x00];
/// The number of a VLAN in its tag.
pub(super) const VLAN: u16 = 0xfff;

/// The commands of the class RX, each a bit.
const fn bit(command: u32) -> u8 {
    1 << command
}
pub(super) const PROMISC: u8 = bit(VIRTIO_NET_CTRL_RX_PROMISC);
const ALLMULTI: u8 = bit(VIRTIO_NET_CTRL_RX_ALLMULTI);
const ALLUNI: u8 = bit(VIRTIO_NET_CTRL_RX_ALLUNI);
const NOMULTI: u8 = bit(VIRTIO_NET_CTRL_RX_NOMULTI);
const NOUNI: u8 = bit(VIRTIO_NET_CTRL_RX_NOUNI);
const NOBCAST: u8 = bit(VIRTIO_NET_CTRL_RX_NOBCAST);

/// Addresses of one kind that the driver listens to beside the card's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Addresses {
    pub(super) known: Vec<[u8; 6]>,
    /// There are more than fit: all are wanted.
    pub(super) all: bool,
}

impl Addresses {
    fn contain(&self, address: [u8; 6]) -> bool {
        self.all || self.known.contains(&address)
    }
}

/// What the driver has said. It begins promiscuous, so that a driver that says nothing gets everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    /// The commands that are on.
    pub(super) mode: u8,
    pub(super) unicast: Addresses,
    pub(super) multicast: Addresses,
    pub(super) vlans: BTreeSet<u16>,
}

impl Default for Filter {
    fn default() -> Self {
        let (unicast, multicast) = Default::default();
        Self { mode: PROMISC, unicast, multicast, vlans: BTreeSet::new() }
    }
}

impl Filter {
    /// Returns true if no packet need be looked at.
    pub(super) fn passes_all(&self, features: u128) -> bool {
        let has = |bit: u32| features & 1 << bit != 0;
        let promiscuous = self.mode & PROMISC != 0;
        promiscuous && (has(VIRTIO_NET_F_CTRL_RX) || !has(VIRTIO_NET_F_CTRL_VLAN))
    }

    /// Returns true if a card with the address `mac` takes the frame that begins with these bytes.
    pub(super) fn passes(&self, features: u128, mac: [u8; 6], frame: [u8; LOOK]) -> bool {
        let has = |bit: u32| features & 1 << bit != 0;
        let on = |command: u8| self.mode & command != 0;
        let [d0, d1, d2, d3, d4, d5, _, _, _, _, _, _, t0, t1, v0, v1] = frame;
        if has(VIRTIO_NET_F_CTRL_RX) && on(PROMISC) {
            return true;
        }
        if has(VIRTIO_NET_F_CTRL_VLAN) && [t0, t1] == TAGGED {
            let vlan = u16::from_be_bytes([v0, v1]) & VLAN;
            if !self.vlans.contains(&vlan) {
                return false;
            }
        }
        let to = [d0, d1, d2, d3, d4, d5];
        if !has(VIRTIO_NET_F_CTRL_RX) {
            true
        } else if to == [0xff; 6] {
            !on(NOBCAST)
        } else if d0 & 1 != 0 {
            !on(NOMULTI) && (on(ALLMULTI) || self.multicast.contain(to))
        } else {
            !on(NOUNI) && (on(ALLUNI) || to == mac || self.unicast.contain(to))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];
    const RX: u128 = 1 << VIRTIO_NET_F_CTRL_RX;
    const VLANS: u128 = 1 << VIRTIO_NET_F_CTRL_VLAN;

    fn frame(to: [u8; 6], vlan: Option<u16>) -> [u8; LOOK] {
        let mut frame = [0; LOOK];
        frame[..6].copy_from_slice(&to);
        if let Some(vlan) = vlan {
            frame[12..14].copy_from_slice(&TAGGED);
            // With a priority.
            frame[14..].copy_from_slice(&(vlan | 0xa000).to_be_bytes());
        }
        frame
    }

    #[test]
    fn takes_what_the_mode_says() {
        let takes = |mode, to| Filter { mode, ..Filter::default() }.passes(RX, MAC, frame(to, None));
        let taken = |mode| [MAC, OTHER, GROUP, ALL].map(|to| takes(mode, to));
        assert_eq!(taken(0), [true, false, false, true]);
        assert_eq!(taken(PROMISC), [true; 4]);
        assert_eq!(taken(PROMISC | NOUNI | NOMULTI | NOBCAST), [true; 4]);
        assert_eq!(taken(ALLMULTI), [true, false, true, true]);
        assert_eq!(taken(ALLUNI), [true, true, false, true]);
        assert_eq!(taken(NOUNI | ALLUNI), [false, false, false, true]);
        assert_eq!(taken(NOMULTI | ALLMULTI), [true, false, false, true]);
        assert_eq!(taken(NOBCAST), [true, false, false, false]);
    }

    #[test]
    fn takes_what_is_in_its_tables() {
        let mut filter = Filter { mode: 0, ..Filter::default() };
        filter.unicast.known.push(OTHER);
        filter.multicast.known.push(GROUP);
        assert!([MAC, OTHER, GROUP, ALL].iter().all(|to| filter.passes(RX, MAC, frame(*to, None))));
        assert!(!filter.passes(RX, MAC, frame([2, 0, 0, 0, 0, 3], None)));
        assert!(!filter.passes(RX, MAC, frame([3, 0, 0, 0, 0, 3], None)));
        (filter.unicast.all, filter.multicast.all) = (true, true);
        assert!(filter.passes(RX, MAC, frame([2, 0, 0, 0, 0, 3], None)));
        assert!(filter.passes(RX, MAC, frame([3, 0, 0, 0, 0, 3], None)));
    }

    #[test]
    fn vlans_are_filtered_by_their_number() {
        let mut filter = Filter { mode: 0, ..Filter::default() };
        filter.vlans.insert(5);
        for features in [VLANS, RX | VLANS] {
            let takes = |vlan| filter.passes(features, MAC, frame(MAC, vlan));
            assert_eq!([takes(None), takes(Some(5)), takes(Some(6))], [true, true, false]);
        }
        // The mode is of no meaning to a driver that cannot set it.
        filter.mode = PROMISC;
        assert!(!filter.passes(VLANS, MAC, frame(MAC, Some(6))) && !filter.passes_all(VLANS));
        assert!(filter.passes(RX | VLANS, MAC, frame(MAC, Some(6))) && filter.passes_all(RX | VLANS));
        assert!(filter.passes_all(0) && filter.passes(0, MAC, frame(OTHER, Some(6))));
    }
}
