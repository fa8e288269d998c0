//! Network cards: what the command line says, and the device that it means.

use std::ffi::OsString;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use ossature::bus::RateLimits;
use ossature::virtio::net::{LinkHandle, Mac, Mtu, Net, NetIo, StreamSocket, Tap, VhostNet};
use ossature::virtio::{Local, Runtime, VirtioDevice};
use ossature::vmm::program::{KeyValueError, KeyValues, inherited_descriptor, parse_rate};

use crate::Result;

pub const VALUE: &str = "tap=NAME|macvtap=NAME|socket=PATH|fd=N[,mac=MAC][,queues=N][,mtu=N][,limit=RATE][,packets=RATE][,pcap=FILE][,vhost[=on|off]]";

const KEYS: [&str; 11] = [
    "tap=NAME",
    "macvtap=NAME",
    "socket=PATH",
    "fd=N",
    "mac=MAC",
    "queues=N",
    "mtu=N",
    "limit=RATE",
    "packets=RATE",
    "pcap=FILE",
    "vhost",
];
const ONE_OF: &str = "one of tap=NAME, macvtap=NAME, socket=PATH and fd=N";
/// Bytes of each packet in a capture: all of the longest.
const SNAP: u32 = 256 << 10;
const MAX_QUEUES: u16 = 16;

/// A card as the command line has it.
#[derive(Clone, Debug)]
pub struct Nic {
    network: Network,
    mac: Mac,
    queues: u16,
    mtu: Option<Mtu>,
    limits: RateLimits,
    pcap: Option<PathBuf>,
    /// The host's kernel moves the packets.
    vhost: bool,
}

#[derive(Clone, Debug)]
enum Network {
    Tap(String),
    Macvtap(String),
    Socket(PathBuf),
    Descriptor(u32),
}

/// A network card, and what controls its link.
pub type Card = (Box<dyn VirtioDevice>, LinkHandle);

fn wrong(key: &str, reason: &str) -> KeyValueError {
    KeyValueError::Wrong { key: key.to_owned(), reason: reason.to_owned() }
}

impl Nic {
    pub fn parse(text: OsString) -> std::result::Result<Self, KeyValueError> {
        let keys = KeyValues::parse_optional(&text, &KEYS)?;
        let (tap, macvtap) = (keys.text("tap")?, keys.text("macvtap")?);
        let (socket, fd) = (keys.value("socket"), keys.parsed::<u32>("fd")?);
        let (network, name) = match (tap, macvtap, socket, fd) {
            (Some(name), None, None, None) => (Network::Tap(name.to_owned()), name.to_owned()),
            (None, Some(name), None, None) => (Network::Macvtap(name.to_owned()), name.to_owned()),
            (None, None, Some(path), None) => {
                (Network::Socket(path.into()), path.to_string_lossy().into_owned())
            }
            (None, None, None, Some(fd)) => (Network::Descriptor(fd), format!("fd{fd}")),
            (None, None, None, None) => return Err(KeyValueError::Missing { key: ONE_OF }),
            _ => return Err(wrong("network", &format!("give only {ONE_OF}"))),
        };
        let queues = keys.parsed("queues")?.unwrap_or(1);
        if !(1..=MAX_QUEUES).contains(&queues) {
            return Err(wrong("queues", "a network card has 1 to 16 pairs of queues"));
        }
        if queues > 1 && !matches!(network, Network::Tap(_) | Network::Macvtap(_)) {
            return Err(wrong("queues", "only a tap or macvtap has more than one pair"));
        }
        let vhost = keys.flag("vhost")?;
        if vhost {
            if let Network::Socket(_) = network {
                return Err(wrong("vhost", "vhost-net works on a tap or macvtap, not on a socket"));
            }
            for key in ["limit", "packets", "pcap"] {
                if keys.value(key).is_some() {
                    return Err(wrong(
                        key,
                        "with vhost the host's kernel moves the packets, and nobody counts or sees them",
                    ));
                }
            }
        }
        Ok(Self {
            mac: keys.parsed("mac")?.unwrap_or_else(|| Mac::derived(&name)),
            mtu: keys.parsed("mtu")?,
            limits: RateLimits::new(
                keys.parsed_by("limit", parse_rate)?,
                keys.parsed_by("packets", parse_rate)?,
            ),
            pcap: keys.value("pcap").map(PathBuf::from),
            vhost,
            network,
            queues,
        })
    }

    /// The card `id`, plugged in and served on `runtime`, and what controls its link while it runs.
    pub fn device(&self, id: &str, runtime: Arc<dyn Runtime>) -> Result<Card> {
        let taps = match &self.network {
            Network::Tap(name) if self.queues == 1 => vec![Tap::open(name)?],
            Network::Tap(name) => Tap::open_queues(name, self.queues)?,
            Network::Macvtap(name) => Tap::open_macvtap(name, self.queues)?,
            Network::Socket(path) => return self.plug_in([StreamSocket::connect(path)?], id, runtime),
            Network::Descriptor(number) => {
                let failed = |e: &dyn std::fmt::Display| format!("--net fd={number}: {e}");
                let open = || inherited_descriptor(*number).map_err(|e| failed(&e));
                match Tap::from_fd(open()?) {
                    Ok(tap) => vec![tap],
                    Err(tap_error) if self.vhost => return Err(failed(&tap_error).into()),
                    Err(tap_error) => match StreamSocket::from_fd(open()?) {
                        Ok(socket) => return self.plug_in([socket], id, runtime),
                        Err(socket_error) => {
                            return Err(format!("{}; {socket_error}", failed(&tap_error)).into());
                        }
                    },
                }
            }
        };
        if !self.vhost {
            return self.plug_in(taps, id, runtime);
        }
        let mut card = VhostNet::new(taps, self.mac).map_err(|e| format!("--net vhost: {e}"))?;
        if let Some(mtu) = self.mtu {
            card = card.with_mtu(mtu);
        }
        let link = card.link();
        Ok((card.on(id, runtime), link))
    }

    fn plug_in<I: NetIo>(
        &self,
        ios: impl IntoIterator<Item = I>,
        id: &str,
        runtime: Arc<dyn Runtime>,
    ) -> Result<Card> {
        let mut card = Net::with_pairs(ios, self.mac)?.with_limits(self.limits, self.limits);
        if let Some(mtu) = self.mtu {
            card = card.with_mtu(mtu);
        }
        let handle = card.handle();
        if let Some(path) = &self.pcap {
            let file = File::create(path).map_err(|e| format!("--net pcap={}: {e}", path.display()))?;
            handle.start_capture(file, SNAP).map_err(|e| format!("--net pcap={}: {e}", path.display()))?;
        }
        Ok((Box::new(Local::new(id, Box::new(card), runtime)), handle.link()))
    }
}
