//! Network card (virtio 1.2, section 5.1).
//!
//! ```
//! use ossature_virtio::net::{Mac, Net, Tap};
//!
//! fn card(tap: &str, mac: Option<&str>) -> Result<Net<Tap>, Box<dyn std::error::Error>> {
//!     let mac = match mac {
//!         Some(text) => text.parse()?,
//!         None => Mac::derived(tap),
//!     };
//!     Ok(Net::new(Tap::open(tap)?, mac))
//! }
//!
//! let error = card("no-such-tap", None).unwrap_err();
//! assert!(error.to_string().starts_with(r#"tap "no-such-tap" does not exist"#));
//! ```

#[allow(unsafe_code)] // see the module
mod batch;
mod capture;
mod control;
mod counters;
mod filter;
mod handle;
mod header;
mod io;
mod mac;
mod mtu;
mod roles;
mod rx;
mod settings;
mod shared;
mod stream;
mod tap;
mod tx;
#[cfg(feature = "vhost")]
mod vhost;
mod worker;

use std::sync::Arc;

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{
    DeviceError, DeviceState, Handover, Identity, MetricVisitor, RateLimiterState, RateLimits, Syscall,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, VIRTIO_NET_F_CTRL_MAC_ADDR, VIRTIO_NET_F_CTRL_RX,
    VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE,
    VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU, VIRTIO_NET_F_SPEED_DUPLEX,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use self::roles::{Role, Roles};
use self::settings::{Settings, VERSION};
use self::shared::{Card, Pair, Shared};
use self::worker::NetWorker;
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use handle::{LinkHandle, NetHandle};
pub use header::HEADER_LEN;
pub use io::{NetIo, Offloads, Unsent};
pub use mac::{Mac, MacError};
pub use mtu::{Mtu, MtuError};
pub use stream::{StreamError, StreamSocket};
pub use tap::{Tap, TapError};
#[cfg(feature = "vhost")]
pub use vhost::VhostNet;

const QUEUE_SIZE: u16 = 256;
/// Commands are few, and Linux sends one after the other.
const CONTROL_QUEUE_SIZE: u16 = 64;
/// `struct virtio_net_config` up to `duplex`.
const CONFIG_LEN: usize = 17;

/// The form in which a card is saved.
const KIND: &str = "ossature.virtio-net";
const RX_LIMIT: Field = Field::new(20, "limit of packets to the guest");
const TX_LIMIT: Field = Field::new(21, "limit of packets from the guest");

/// A network card, each of whose pairs of queues is plugged into a [`NetIo`] and served by a worker of its own.
///
/// It offers a MAC address, merged receive buffers, the state of its link, a control queue (receive modes, address
/// tables and VLANs, another address, the guest's offloads, announcements), the offloads that its network has both ways,
/// and as it was made: several pairs of queues, an MTU, a speed. With the control queue it filters as its driver says;
/// before the driver has said anything it takes every packet.
///
/// A packet to the guest for which the driver has too few buffers, and a packet from the guest that is too short, too
/// long, or asks for what was not negotiated or lies beyond its end, is dropped and counted.
#[derive(Debug)]
pub struct Net<I> {
    card: Arc<Card>,
    pairs: Arc<[Pair<I>]>,
    mac: Mac,
    mtu: Option<Mtu>,
    /// In units of a million bits a second.
    speed: Option<u32>,
}

impl<I: NetIo> Net<I> {
    /// A card with one pair of queues, on `io`, with the address `mac`.
    pub fn new(io: I, mac: Mac) -> Self {
        let card = Arc::new(Card::new(Settings::new(mac.bytes())));
        Self { card, pairs: Arc::new([Pair::new(io)]), mac, mtu: None, speed: None }
    }

    /// A card with a pair of queues for each network of `ios`, such as the queues of one tap. The host decides which of
    /// them gets a packet. Fails if there is none, or more than [`MAX_PAIRS`](Self::MAX_PAIRS).
    pub fn with_pairs(ios: impl IntoIterator<Item = I>, mac: Mac) -> Result<Self, DeviceError> {
        let pairs: Arc<[_]> = ios.into_iter().map(Pair::new).collect();
        if !(1..=usize::from(Self::MAX_PAIRS)).contains(&pairs.len()) {
            let (found, most) = (pairs.len(), Self::MAX_PAIRS);
            return Err(DeviceError::new(format!("{found} pairs of queues; a network card has 1 to {most}")));
        }
        let card = Arc::new(Card::new(Settings::new(mac.bytes())));
        Ok(Self { card, pairs, mac, mtu: None, speed: None })
    }

    /// The most pairs of queues.
    pub const MAX_PAIRS: u16 = 64;

    /// The same card, which tells the guest how long packets can be.
    #[must_use]
    pub fn with_mtu(mut self, mtu: Mtu) -> Self {
        self.mtu = Some(mtu);
        self
    }

    /// The same card, which tells the guest that it sends and receives so many million bits a second at once. It does not
    /// keep to that.
    #[must_use]
    pub fn with_speed(mut self, megabits: u32) -> Self {
        // Greater numbers mean that it is not known.
        self.speed = Some(megabits.min(i32::MAX as u32));
        self
    }

    /// The same card with limits on packets to the guest and from it. An operation is a packet.
    #[must_use]
    pub fn with_limits(self, to_guest: RateLimits, from_guest: RateLimits) -> Self {
        self.handle().set_limits(to_guest, from_guest);
        self
    }

    /// The address that it was given.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// What controls the card while it runs.
    pub fn handle(&self) -> NetHandle {
        NetHandle(Arc::clone(&self.card))
    }

    fn pairs(&self) -> u16 {
        // As many as fit, see `with_pairs`.
        self.pairs.len() as u16
    }

    /// The unfinished packets that all networks take.
    fn offloads(&self) -> Offloads {
        self.pairs.iter().fold(Offloads::all(), |all, pair| all.and(pair.io.offloads()))
    }

    fn roles(&self, features: u128) -> Roles {
        Roles::new(self.pairs(), features)
    }
}

impl<I: NetIo> LocalDevice for Net<I> {
    fn info(&self) -> DeviceInfo {
        let offloads = self.offloads();
        let always = 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_CTRL_VQ
            | 1 << VIRTIO_NET_F_CTRL_RX
            | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA
            | 1 << VIRTIO_NET_F_CTRL_VLAN
            | 1 << VIRTIO_NET_F_CTRL_MAC_ADDR
            | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;
        let features = always
            | offloads.host_features()
            | offloads.guest_features()
            | u128::from(offloads != Offloads::none()) << VIRTIO_NET_F_CTRL_GUEST_OFFLOADS
            | u128::from(self.pairs() > 1) << VIRTIO_NET_F_MQ
            | u128::from(self.mtu.is_some()) << VIRTIO_NET_F_MTU
            | u128::from(self.speed.is_some()) << VIRTIO_NET_F_SPEED_DUPLEX;
        let mut queues = vec![QUEUE_SIZE; 2 * usize::from(self.pairs())];
        queues.push(CONTROL_QUEUE_SIZE);
        DeviceInfo::new(DeviceType::NET, &queues).with_features(features).with_config(CONFIG_LEN as u32)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        let pair = |number: u16| vec![2 * number, 2 * number + 1];
        (0..self.pairs()).map(pair).chain([vec![2 * self.pairs()]]).collect()
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        let settings = self.card.settings();
        // All of them note what they have told.
        let disconnected = self.pairs.iter().filter(|pair| !pair.tell_connected()).count();
        let up = disconnected == 0 && !settings.link_down;
        let status = if up { VIRTIO_NET_S_LINK_UP } else { 0 }
            | if settings.announce { VIRTIO_NET_S_ANNOUNCE } else { 0 };
        let mut config = [0; CONFIG_LEN];
        // A speed that is not known has all bits set, and so has its kind.
        let fields: [(usize, &[u8]); 6] = [
            (0, &settings.mac),
            (6, &(status as u16).to_le_bytes()),
            (8, &self.pairs().to_le_bytes()),
            (10, &self.mtu.map_or(0, Mtu::bytes).to_le_bytes()),
            (12, &self.speed.unwrap_or(u32::MAX).to_le_bytes()),
            (16, &[if self.speed.is_some() { 1 } else { u8::MAX }]),
        ];
        for (offset, value) in fields {
            for (to, from) in config.iter_mut().skip(offset).zip(value) {
                *to = *from;
            }
        }
        crate::config::read(&config, offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Since virtio 1.0 the address is not written here.
    }

    fn worker(&mut self, group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        self.card.connect(Some(activation.config.clone()));
        if let Some(Pair { io, .. }) = self.pairs.get(group) {
            // The loop has to watch it while it is in use: the worker says what the driver wants.
            io.set_active(true).map_err(|e| {
                DeviceError::new("cannot use the queue of the host's interface").with_source(e)
            })?;
            let accepted = self.card.settings().accepted(activation.features);
            io.set_offloads(accepted).map_err(|e| {
                DeviceError::new("cannot set the offloads of the host's interface").with_source(e)
            })?;
        }
        let (shared, roles) =
            (Shared::new(&self.card, &self.pairs, activation), self.roles(activation.features));
        let number = u16::try_from(group).unwrap_or(u16::MAX);
        let worker = NetWorker::new(shared, roles, number, activation.config.clone());
        worker
            .map(|worker| Box::new(worker) as Box<dyn Worker>)
            .map_err(|e| DeviceError::new("cannot make the events of a network card's worker").with_source(e))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.card.rx_limiter.pause();
        self.card.tx_limiter.pause();
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.card.rx_limiter.resume();
        self.card.tx_limiter.resume();
        Ok(())
    }

    fn reset(&mut self) {
        // The next worker sets the offloads anew; nearly all else went with the last.
        self.card.connect(None);
        self.card.change(|settings| settings.reset(self.mac.bytes()));
        self.card.counters.host_errors.reset();
        self.pairs.iter().for_each(|pair| pair.counters.host_errors.reset());
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        self.card.settings().save(&mut fields, self.mac.bytes());
        for (field, limiter) in [(RX_LIMIT, &self.card.rx_limiter), (TX_LIMIT, &self.card.tx_limiter)] {
            fields.nested(field, |fields| limiter.state().save(fields));
        }
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let offered = self.offloads().guest_features();
        let own = (self.mac.bytes(), handover.to_clone);
        let settings = Settings::load(&mut fields, own, self.pairs(), offered)?;
        let mut limit = |field| {
            fields.since(2, field, RateLimiterState::default(), |fields, field| {
                fields.nested(field, RateLimiterState::load)
            })
        };
        let (rx, tx) = (limit(RX_LIMIT)?, limit(TX_LIMIT)?);
        fields.finish()?;
        self.card.rx_limiter.restore(rx);
        self.card.tx_limiter.restore(tx);
        self.card.connect(None);
        self.card.change(|now| *now = settings);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.pairs.first().map_or(&[], |pair| pair.io.syscalls())
    }

    fn identities(&self) -> Vec<Identity> {
        vec![Identity::new("MAC", self.mac.to_string())]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        counters::show(self.pairs.iter().map(|pair| &pair.counters), &self.card.counters, visitor);
    }
}

#[cfg(test)]
mod tests;
