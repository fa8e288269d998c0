//! A network card whose packets the host's kernel moves (vhost-net).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, EventSink, Handover, Identity, MetricVisitor, Syscall};
use ossature_memory::{Dma, DmaIoError, Segments};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_RX, VIRTIO_NET_F_CTRL_RX_EXTRA, VIRTIO_NET_F_CTRL_VLAN, VIRTIO_NET_F_MRG_RXBUF,
};

use super::io::{NetIo, Offloads, Unsent};
use super::roles::{Role, Roles};
use super::shared::{Card, Pair};
use super::{HEADER_LEN, LinkHandle, Mac, Mtu, Net, Tap, counters};
use crate::vhost::{Kernel, Refused, Vhost, VhostError};
use crate::{Activation, DeviceInfo, Local, QueueSetup, QueueState, Runtime, VirtioDevice};

const PATH: &str = "/dev/vhost-net";
const MODULE: &str = "vhost_net";
/// What is left to whoever moves the packets, and is the kernel's to know.
const KERNELS: u128 = 1 << VIRTIO_NET_F_MRG_RXBUF;
/// What filters packets, which the kernel does not.
const FILTERS: u128 =
    1 << VIRTIO_NET_F_CTRL_RX | 1 << VIRTIO_NET_F_CTRL_RX_EXTRA | 1 << VIRTIO_NET_F_CTRL_VLAN;

/// A network card like [`Net`] on the queues of a tap or macvtap, whose packets the host's kernel moves between them and
/// the guest.
///
/// Its control queue is served here. It has no filters, no limits and no capture, and counts no packets: nobody sees them.
/// While its link is down, what the guest sends waits.
///
/// ```no_run
/// use std::sync::Arc;
/// use ossature_virtio::net::{Mac, Tap, VhostNet};
/// use ossature_virtio::{SharedLoop, VirtioMmio};
///
/// let card = VhostNet::new([Tap::open("tap0")?], Mac::derived("tap0"))?;
/// let device = VirtioMmio::from_device("net0", card.on("net0", Arc::new(SharedLoop::new("io")?)));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct VhostNet {
    net: Net<VhostTap>,
    /// Of the features that are the kernel's to know, those that all of its devices have.
    offered: u128,
}

impl VhostNet {
    /// A card with a pair of queues for each of `taps`, as [`Net::with_pairs`] has it. Opens `/dev/vhost-net` for each.
    pub fn new(taps: impl IntoIterator<Item = Tap>, mac: Mac) -> Result<Self, VhostError> {
        let open = |tap| Ok((tap, Vhost::new(Kernel::open(PATH, MODULE)?)?));
        Self::with_vhost(taps.into_iter().map(open), mac)
    }

    /// As [`new`](Self::new) with open descriptors of `/dev/vhost-net`, which nobody has set up.
    pub fn from_fds(pairs: impl IntoIterator<Item = (Tap, OwnedFd)>, mac: Mac) -> Result<Self, VhostError> {
        let open = |(tap, fd)| Ok((tap, Vhost::new(Kernel::from_fd(fd))?));
        Self::with_vhost(pairs.into_iter().map(open), mac)
    }

    pub(super) fn with_vhost(
        pairs: impl Iterator<Item = Result<(Tap, Vhost), VhostError>>,
        mac: Mac,
    ) -> Result<Self, VhostError> {
        let mut offered = KERNELS;
        let mut taps = Vec::new();
        for pair in pairs {
            let (tap, vhost) = pair?;
            offered &= vhost.offered(KERNELS);
            taps.push(VhostTap::new(tap, vhost));
        }
        let (found, most) = (taps.len(), Net::<VhostTap>::MAX_PAIRS);
        let net = Net::with_pairs(taps, mac).map_err(|_| VhostError::Pairs { found, most })?;
        let (card, pairs) = (Arc::downgrade(&net.card), Arc::downgrade(&net.pairs));
        net.card.on_link(move || {
            if let (Some(card), Some(pairs)) = (card.upgrade(), pairs.upgrade()) {
                follow_link(&card, &pairs);
            }
        });
        Ok(Self { net, offered })
    }

    /// See [`Net::with_mtu`].
    #[must_use]
    pub fn with_mtu(mut self, mtu: Mtu) -> Self {
        self.net = self.net.with_mtu(mtu);
        self
    }

    /// See [`Net::with_speed`].
    #[must_use]
    pub fn with_speed(mut self, megabits: u32) -> Self {
        self.net = self.net.with_speed(megabits);
        self
    }

    /// What controls its link while it runs.
    pub fn link(&self) -> LinkHandle {
        self.net.handle().link()
    }

    /// The card as transports take it. What is served here is on `runtime`, whose threads, if it makes some, are named
    /// after `name`.
    pub fn on(self, name: &str, runtime: Arc<dyn Runtime>) -> Box<dyn VirtioDevice> {
        let Self { net, offered } = self;
        let (card, pairs) = (net.card.clone(), net.pairs.clone());
        let hidden = FILTERS | KERNELS & !offered;
        let local = Local::new(name, Box::new(net), runtime.clone());
        Box::new(Device { name: name.to_owned(), local, card, pairs, hidden, runtime, activation: None })
    }
}

/// Has the kernel move packets or not, as the link is by now.
fn follow_link(card: &Card, pairs: &[Pair<VhostTap>]) {
    let settings = card.settings();
    for pair in pairs {
        if let Err(e) = pair.io.change(|now| now.up = !settings.link_down) {
            let events = pair.io.inner().events.clone();
            card.counters.host_errors.note(&events, "follow the link", &e);
        }
    }
}

/// A tap with the vhost device that serves its rings.
pub(super) struct VhostTap {
    tap: Tap,
    inner: Mutex<Inner>,
}

struct Inner {
    vhost: Vhost,
    events: EventSink,
    /// The driver uses this pair of queues.
    active: bool,
    /// The link is up.
    up: bool,
    /// The rings that the kernel serves.
    runs: [bool; 2],
}

impl std::fmt::Debug for VhostTap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostTap").field("tap", &self.tap).finish_non_exhaustive()
    }
}

impl VhostTap {
    fn new(tap: Tap, vhost: Vhost) -> Self {
        let (events, runs) = (EventSink::discard(), [false; 2]);
        Self { tap, inner: Mutex::new(Inner { vhost, events, active: true, up: true, runs }) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something, and has the kernel serve the rings that are to be served then.
    fn change(&self, f: impl FnOnce(&mut Inner)) -> Result<(), Refused> {
        let mut inner = self.inner();
        f(&mut inner);
        inner.follow(&self.tap)
    }
}

impl Inner {
    fn follow(&mut self, tap: &Tap) -> Result<(), Refused> {
        for (ring, runs) in self.runs.iter_mut().enumerate() {
            let wanted = self.active && self.up && self.vhost.is_set_up(ring);
            if *runs != wanted {
                self.vhost.backend().set_tap(ring as u32, wanted.then(|| tap.fd()))?;
                *runs = wanted;
                if wanted {
                    self.vhost.kick(ring);
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, ring: usize, setup: QueueSetup, tap: &Tap) -> Result<(), DeviceError> {
        self.vhost.set_up(ring, setup)?;
        let follows = self.follow(tap);
        if follows.is_err() {
            // The first error is the one to tell.
            let _ = self.stop(ring);
        }
        Ok(follows?)
    }

    fn stop(&mut self, ring: usize) -> Result<QueueState, DeviceError> {
        if let Some(runs) = self.runs.get_mut(ring)
            && *runs
        {
            self.vhost.backend().set_tap(ring as u32, None)?;
            *runs = false;
        }
        self.vhost.take_down(ring)
    }
}

/// What is left to be done here: settings. No packet passes.
impl NetIo for VhostTap {
    fn fd(&self) -> BorrowedFd<'_> {
        self.tap.fd()
    }

    fn offloads(&self) -> Offloads {
        self.tap.offloads()
    }

    fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        self.tap.set_offloads(offloads)
    }

    fn set_active(&self, active: bool) -> io::Result<()> {
        let refused = |Refused { source, .. }: Refused| source;
        // The kernel serves no queue that the tap has not.
        if !active {
            self.change(|now| now.active = false).map_err(refused)?;
        }
        self.tap.set_active(active)?;
        if active {
            self.change(|now| now.active = true).map_err(refused)?;
        }
        Ok(())
    }

    fn is_connected(&self) -> bool {
        self.tap.is_connected()
    }

    fn receive(&self, _: &Dma, _: Segments<'_>) -> Result<usize, DmaIoError> {
        Err(io::Error::from(io::ErrorKind::WouldBlock).into())
    }

    fn send(&self, _: &Dma, _: &[u8; HEADER_LEN], _: Segments<'_>) -> Result<(), DmaIoError> {
        Err(io::Error::from(io::ErrorKind::WouldBlock).into())
    }

    fn flush(&self) -> Result<(), Unsent> {
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.tap.syscalls()
    }
}

/// The card as transports see it: the control queue is its `local` part's, the others are the kernel's.
struct Device {
    name: String,
    local: Local,
    card: Arc<Card>,
    pairs: Arc<[Pair<VhostTap>]>,
    /// What the local part offers and this does not.
    hidden: u128,
    runtime: Arc<dyn Runtime>,
    activation: Option<Activation>,
}

impl Device {
    fn roles(&self, features: u128) -> Roles {
        Roles::new(self.pairs.len() as u16, features)
    }

    /// The pair and the ring of a queue, if it is the kernel's.
    fn ring(&self, index: u16) -> Option<(u16, &VhostTap, usize)> {
        let features = self.activation.as_ref()?.features;
        let kernels = matches!(self.roles(features).of(index), Role::Receive | Role::Send);
        let number = index / 2;
        let pair = self.pairs.get(usize::from(number)).filter(|_| kernels)?;
        Some((number, &pair.io, usize::from(index % 2)))
    }

    fn deactivate(&mut self) {
        self.activation = None;
        self.pairs.iter().for_each(|pair| pair.io.inner().vhost.deactivate());
    }
}

impl VirtioDevice for Device {
    fn info(&self) -> DeviceInfo {
        let info = self.local.info();
        let features = info.features & !self.hidden;
        info.with_features(features)
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        self.local.read_config(offset, buf);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.local.write_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let first = self.roles(activation.features).queues();
        for pair in &*self.pairs {
            let mut inner = pair.io.inner();
            inner.events = activation.events.clone();
            inner.vhost.activate(&activation, KERNELS, (&self.name, first, &*self.runtime))?;
        }
        // The driver hears of the link without a control queue, too.
        self.card.connect(Some(activation.config.clone()));
        self.activation = Some(activation.clone());
        self.local.activate(activation)
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let features = setup.features;
        let Some((number, tap, ring)) = self.ring(setup.index) else {
            return self.local.start_queue(setup);
        };
        let settings = self.card.settings();
        let failed = |what: &'static str| move |e| DeviceError::new(what).with_source(e);
        tap.set_active(number < settings.pairs)
            .map_err(failed("cannot use the queue of the host's interface, or leave it alone"))?;
        // Those of the whole tap: one of its queues is in use.
        tap.set_offloads(settings.accepted(features))
            .map_err(failed("cannot set the offloads of the host's interface"))?;
        let mut inner = tap.inner();
        inner.up = !settings.link_down;
        inner.start(ring, setup, &tap.tap)
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueueState, DeviceError> {
        match self.ring(index) {
            Some((_, tap, ring)) => tap.inner().stop(ring),
            None => self.local.stop_queue(index),
        }
    }

    fn forget_queue(&mut self, index: u16) {
        self.local.forget_queue(index);
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.local.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        self.local.resume()
    }

    fn reset(&mut self) {
        self.deactivate();
        self.local.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.local.save()
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        self.local.restore(handover)?;
        self.deactivate();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.local.syscalls()
    }

    fn identities(&self) -> Vec<Identity> {
        self.local.identities()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        counters::show_control(0, &self.card.counters, visitor);
    }
}

#[cfg(test)]
mod tests;
