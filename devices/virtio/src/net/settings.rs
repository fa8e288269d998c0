//! What the driver has set by commands: kept across a pause, saved, and gone with the driver.

use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use super::filter::{Addresses, Filter, TABLE, VLAN};
use super::io::Offloads;
use super::mac::Mac;

const MAC: Field = Field::new(1, "address of the card");
const GUEST_MAC: Field = Field::new(2, "address that the guest uses");
const MODE: Field = Field::new(3, "receive mode");
const UNICAST: Field = Field::new(4, "unicast addresses");
const ALL_UNICAST: Field = Field::new(5, "all unicast addresses");
const MULTICAST: Field = Field::new(6, "multicast addresses");
const ALL_MULTICAST: Field = Field::new(7, "all multicast addresses");
const VLANS: Field = Field::new(8, "VLANs");
const PAIRS: Field = Field::new(9, "pairs of queues in use");
const OFFLOADS: Field = Field::new(10, "guest offloads");
const LINK_DOWN: Field = Field::new(11, "link that is down");
const ANNOUNCE: Field = Field::new(12, "announcement that is due");

/// The commands that set a mode.
const MODES: u8 = 0x3f;

/// The version of the form in which a card is saved.
pub(super) const VERSION: u16 = 2;

/// Settings of a card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Settings {
    /// The address that the guest uses.
    pub(super) mac: [u8; 6],
    pub(super) filter: Filter,
    /// How many pairs of queues the driver uses, from the first on.
    pub(super) pairs: u16,
    /// The feature bits of the guest's offloads, where they are not what was negotiated.
    pub(super) offloads: Option<u64>,
    /// The link is down, as the VMM wants it.
    pub(super) link_down: bool,
    /// The driver was asked to announce itself, and has not said that it did.
    pub(super) announce: bool,
}

impl Settings {
    pub(super) fn new(mac: [u8; 6]) -> Self {
        Self { mac, filter: Filter::default(), pairs: 1, offloads: None, link_down: false, announce: false }
    }

    /// Forgets the driver of a card whose own address is `mac`.
    pub(super) fn reset(&mut self, mac: [u8; 6]) {
        *self = Self { link_down: self.link_down, ..Self::new(mac) };
    }

    /// The unfinished packets that the guest accepts now.
    pub(super) fn accepted(&self, features: u128) -> Offloads {
        Offloads::accepted(self.offloads.map_or(features, u128::from))
    }

    /// Writes them, and the address `own` that the card was given.
    pub(super) fn save(&self, fields: &mut Encoder, own: [u8; 6]) {
        let Self { mac, filter, pairs, offloads, link_down, announce } = self;
        let Filter { mode, unicast, multicast, vlans } = filter;
        let vlans: Vec<u8> = vlans.iter().flat_map(|vlan| vlan.to_le_bytes()).collect();
        fields
            .bytes(MAC, &own)
            .bytes(GUEST_MAC, mac)
            .u8(MODE, *mode)
            .bytes(UNICAST, unicast.known.as_flattened())
            .bool(ALL_UNICAST, unicast.all)
            .bytes(MULTICAST, multicast.known.as_flattened())
            .bool(ALL_MULTICAST, multicast.all)
            .bytes(VLANS, &vlans)
            .u16(PAIRS, *pairs);
        if let Some(offloads) = offloads {
            fields.u64(OFFLOADS, *offloads);
        }
        fields.bool(LINK_DOWN, *link_down).bool(ANNOUNCE, *announce);
    }

    /// Reads what a card with the address `own` can have saved, which has so many pairs of queues, and offers these
    /// feature bits for the guest's offloads. What is read `to_clone` is another card's, with another address: the clone
    /// has the one of its own alone, whatever address the guest has set that was saved.
    pub(super) fn load(
        fields: &mut Decoder<'_>,
        (own, to_clone): ([u8; 6], bool),
        max_pairs: u16,
        offered: u128,
    ) -> Result<Self, StateError> {
        match (fields.array(MAC)? == own, to_clone) {
            // The guest would go on with its own.
            (false, false) => return Err(inconsistent("address of the card", "this card has another")),
            (true, true) => return Err(inconsistent("address of the card", "a clone needs one of its own")),
            _ => {}
        }
        let set = Self::new(own);
        let mac = fields.since(2, GUEST_MAC, own, Decoder::array)?;
        let mode = fields.since(2, MODE, set.filter.mode, Decoder::u8)?;
        let unicast = addresses(fields, UNICAST, ALL_UNICAST)?;
        let multicast = addresses(fields, MULTICAST, ALL_MULTICAST)?;
        let vlans = fields
            .since(2, VLANS, &[][..], |fields, field| fields.bytes(field, 2 * usize::from(VLAN) + 2))?;
        let vlans = whole::<2>(vlans).ok_or(inconsistent("VLANs", "not whole numbers"))?;
        let vlans: Vec<u16> = vlans.into_iter().map(u16::from_le_bytes).collect();
        let pairs = fields.since(2, PAIRS, set.pairs, Decoder::u16)?;
        let offloads = fields.optional(OFFLOADS, Decoder::u64)?;
        let link_down = fields.since(2, LINK_DOWN, false, Decoder::bool)?;
        let announce = fields.since(2, ANNOUNCE, false, Decoder::bool)?;
        if Mac::new(mac).is_err() {
            return Err(inconsistent("address that the guest uses", "no card has it"));
        }
        if mode > MODES {
            return Err(StateError::Value { field: "receive mode", value: mode.into() });
        }
        if !vlans.is_sorted_by(|a, b| a < b) || vlans.last().is_some_and(|last| *last > VLAN) {
            return Err(inconsistent("VLANs", "not numbers of VLANs in their order"));
        }
        if !(1..=max_pairs).contains(&pairs) {
            return Err(StateError::Value { field: "pairs of queues in use", value: pairs.into() });
        }
        if offloads.is_some_and(|bits| u128::from(bits) & !offered != 0) {
            return Err(inconsistent("guest offloads", "the card does not offer all of them"));
        }
        let mac = if to_clone { own } else { mac };
        let filter = Filter { mode, unicast, multicast, vlans: vlans.into_iter().collect() };
        Ok(Self { mac, filter, pairs, offloads, link_down, announce })
    }
}

fn addresses(fields: &mut Decoder<'_>, list: Field, all: Field) -> Result<Addresses, StateError> {
    let bytes = fields.since(2, list, &[][..], |fields, field| fields.bytes(field, 6 * TABLE))?;
    let all = fields.since(2, all, false, Decoder::bool)?;
    let known = whole::<6>(bytes).ok_or(inconsistent("addresses", "not whole ones"))?;
    Ok(Addresses { known, all })
}

/// Bytes as pieces of the same length, if they are that.
pub(super) fn whole<const N: usize>(bytes: &[u8]) -> Option<Vec<[u8; N]>> {
    let pieces = bytes.chunks(N).map(|piece| piece.try_into().ok());
    pieces.collect()
}

fn inconsistent(field: &'static str, reason: &'static str) -> StateError {
    StateError::Inconsistent { field, reason }
}
