//! A socket device that the host's kernel serves (vhost-vsock).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ossature_bus::state::{Encoder, StateError};
use ossature_bus::{DeviceError, DeviceState, Handover, Identity, MetricVisitor, Syscall};

use super::{
    CID, Cid, EVENT, KIND, LOST, QUEUE_SIZES, RX, TX, VERSION, VIRTIO_VSOCK_F_SEQPACKET,
    VIRTIO_VSOCK_F_STREAM, Vsock,
};
use crate::vhost::{Kernel, Vhost, VhostError};
use crate::{Activation, DeviceInfo, DeviceType, Local, QueueSetup, QueueState, Runtime, VirtioDevice};

const PATH: &str = "/dev/vhost-vsock";
const MODULE: &str = "vhost_vsock";
const SEQPACKET: u128 = 1 << VIRTIO_VSOCK_F_SEQPACKET;

/// A socket device that connects the guest with sockets of the host's own `AF_VSOCK`, where the guest has its CID and the
/// host CID 2. No data passes through this process.
///
/// The CID belongs to the device from when it first goes on until it is dropped, also while its machine is paused: what
/// gave it up would lose all connections. They survive a pause, but not a saved state: after a restore the guest is told
/// that they are gone. After a reset of the guest, programs of the host learn of the end of their connections when they
/// next send something.
///
/// ```no_run
/// use std::sync::Arc;
/// use ossature_virtio::vsock::VhostVsock;
/// use ossature_virtio::{SharedLoop, VirtioMmio};
///
/// let sockets = VhostVsock::new("3".parse()?)?;
/// let device = VirtioMmio::from_device("vsock", sockets.on("vsock", Arc::new(SharedLoop::new("io")?))?);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct VhostVsock {
    cid: Cid,
    vhost: Vhost,
}

impl std::fmt::Debug for VhostVsock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhostVsock").field("cid", &self.cid).finish_non_exhaustive()
    }
}

impl VhostVsock {
    /// A device for a guest with this address. Opens `/dev/vhost-vsock`.
    pub fn new(cid: Cid) -> Result<Self, VhostError> {
        Self::with_vhost(cid, Vhost::new(Kernel::open(PATH, MODULE)?)?)
    }

    /// As [`new`](Self::new) with an open descriptor of `/dev/vhost-vsock`, which nobody has set up.
    pub fn from_fd(cid: Cid, fd: OwnedFd) -> Result<Self, VhostError> {
        Self::with_vhost(cid, Vhost::new(Kernel::from_fd(fd))?)
    }

    pub(super) fn with_vhost(cid: Cid, vhost: Vhost) -> Result<Self, VhostError> {
        Ok(Self { cid, vhost })
    }

    /// The guest's address.
    pub fn cid(&self) -> Cid {
        self.cid
    }

    /// The device as transports take it. What is served here, which is the queue of events, is on `runtime`, whose threads,
    /// if it makes some, are named after `name`.
    pub fn on(self, name: &str, runtime: Arc<dyn Runtime>) -> Result<Box<dyn VirtioDevice>, DeviceError> {
        let Self { cid, vhost } = self;
        let events = Vsock::new(cid)
            .map_err(|e| DeviceError::new("cannot make the queue of events").with_source(e))?;
        let local = Local::new(name, Box::new(events), runtime.clone());
        let (name, claimed, running) = (name.to_owned(), false, false);
        Ok(Box::new(Device { name, cid, vhost, local, runtime, claimed, running }))
    }
}

/// The device as transports see it.
struct Device {
    name: String,
    cid: Cid,
    vhost: Vhost,
    /// Serves the queue of events, and has no host's side.
    local: Local,
    runtime: Arc<dyn Runtime>,
    /// The host's kernel knows the address.
    claimed: bool,
    /// The kernel serves both rings.
    running: bool,
}

impl Device {
    /// Has the kernel serve both rings, or none.
    fn set_running(&mut self, running: bool) -> Result<(), DeviceError> {
        if self.running != running {
            self.vhost.backend().set_running(running)?;
            self.running = running;
        }
        Ok(())
    }
}

impl VirtioDevice for Device {
    fn info(&self) -> DeviceInfo {
        DeviceInfo::new(DeviceType::VSOCK, &QUEUE_SIZES)
            .with_features(1 << VIRTIO_VSOCK_F_STREAM | self.vhost.offered(SEQPACKET))
            .with_config(8)
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        self.local.read_config(offset, buf);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.local.write_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let first = QUEUE_SIZES.len() as u16;
        self.vhost.activate(&activation, SEQPACKET, (&self.name, first, &*self.runtime))?;
        self.local.activate(activation)
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        if setup.index == EVENT {
            return self.local.start_queue(setup);
        }
        let ring = setup.index.into();
        self.vhost.set_up(ring, setup)?;
        // The kernel has both or none.
        if [RX, TX].into_iter().any(|ring| !self.vhost.is_set_up(ring.into())) {
            return Ok(());
        }
        let runs = self.set_running(true);
        match runs {
            Ok(()) => [RX, TX].into_iter().for_each(|ring| self.vhost.kick(ring.into())),
            // The first error is the one to tell.
            Err(_) => drop(self.vhost.take_down(ring)),
        }
        runs
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueueState, DeviceError> {
        if index == EVENT {
            return self.local.stop_queue(index);
        }
        self.set_running(false)?;
        self.vhost.take_down(index.into())
    }

    fn forget_queue(&mut self, index: u16) {
        self.local.forget_queue(index);
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.local.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        if !self.claimed {
            self.vhost.backend().set_cid(self.cid.get().into()).map_err(|refused| {
                let taken = refused.source.raw_os_error() == Some(libc::EADDRINUSE);
                let (cid, what) =
                    (self.cid, if taken { " in use by another guest of this host" } else { "" });
                DeviceError::from(refused).context(format_args!("the guest's CID {cid}{what}"))
            })?;
            self.claimed = true;
        }
        self.local.resume()
    }

    fn reset(&mut self) {
        self.vhost.deactivate();
        self.local.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        // Which connections there are, only the kernel knows.
        fields.u32(CID, self.cid.get()).bool(LOST, true);
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        self.local.restore(handover)?;
        self.vhost.deactivate();
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // The rings' setup, their events, and the loop's.
        &[
            Syscall("close"),
            Syscall("epoll_ctl"),
            Syscall("eventfd2"),
            Syscall("ioctl"),
            Syscall("read"),
            Syscall("write"),
        ]
    }

    fn identities(&self) -> Vec<Identity> {
        self.local.identities()
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {
        // The kernel counts nothing.
    }
}

#[cfg(test)]
mod tests;
