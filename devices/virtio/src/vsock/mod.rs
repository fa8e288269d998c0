//! Sockets between the guest and programs of the host, without a network (virtio 1.2, section 5.10).
//!
//! ```no_run
//! use ossature_virtio::vsock::{HostSocket, Vsock};
//!
//! // A program of the host connects to `vm.sock` and writes "CONNECT 1234\n"; what the guest connects to at port 80 of
//! // CID 2 is the Unix socket `vm.sock_80`.
//! let device = Vsock::new("3".parse()?)?.with_socket(HostSocket::bind("vm.sock")?)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cid;
mod connection;
mod counters;
mod credit;
mod deadlines;
mod handshake;
mod host;
mod hub;
mod outbox;
mod packet;
mod rx;
mod table;
mod tx;
#[cfg(feature = "vhost")]
mod vhost;
mod worker;

use std::io;
use std::sync::{Arc, Mutex};

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceError, DeviceState, Handover, Identity, MetricVisitor, Syscall};
use rustix::process::{Resource, getrlimit};

use self::counters::Counters;
use self::hub::Hub;
use self::worker::{VsockWorker, lock};
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use cid::{Cid, CidError};
pub use host::{Connect, HostSocket, HostSocketError};
#[cfg(feature = "vhost")]
pub use vhost::VhostVsock;

/// The queue of buffers for packets to the guest.
const RX: u16 = 0;
/// The queue of packets from the guest.
const TX: u16 = 1;
/// The queue of buffers for events.
const EVENT: u16 = 2;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];
/// Streams are served (5.10.3).
const VIRTIO_VSOCK_F_STREAM: u32 = 0;
/// So are sequential packets.
const VIRTIO_VSOCK_F_SEQPACKET: u32 = 1;
/// Connections, and programs that have not said yet what they want.
const MAX_CONNECTIONS: usize = 16 << 10;

/// The form in which a socket device is saved.
const KIND: &str = "ossature.virtio-vsock";
const VERSION: u16 = 1;
const CID: Field = Field::new(1, "address of the guest");
const LOST: Field = Field::new(2, "connections to reset");

/// A socket device, on Unix sockets of the host.
///
/// Data moves between the host's sockets and the guest's buffers without a copy of ours, as long as the socket takes it.
/// What it does not take is kept, for each connection up to what its guest was allowed to send: between 16 and 256 KiB,
/// the less the more connections there are. So a program that does not read keeps only its own connection waiting. Either
/// side may shut down one direction; what was sent before arrives.
///
/// Each connection takes a descriptor. So that no guest uses up those of the process, there are at most half as many
/// connections as the process may have descriptors when the device is made (`RLIMIT_NOFILE`), and at most 16384.
///
/// Connections survive a pause, but not a saved state: after a restore the guest is told that they are gone. A socket's
/// file belongs to the device from its making to its end, also while the machine is paused: programs that connect
/// meanwhile wait.
#[derive(Debug)]
pub struct Vsock {
    cid: Cid,
    hub: Arc<Mutex<Hub>>,
    counters: Arc<Counters>,
}

impl Vsock {
    /// A device for a guest with this address, which so far refuses every connection.
    pub fn new(cid: Cid) -> io::Result<Self> {
        let counters = Arc::new(Counters::default());
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let max = MAX_CONNECTIONS.min(usize::try_from(descriptors / 2).unwrap_or(usize::MAX));
        let hub = Hub::new(cid.get().into(), max, Arc::clone(&counters))?;
        Ok(Self { cid, hub: Arc::new(Mutex::new(hub)), counters })
    }

    /// The same with a host's side for the type of sockets that `socket` is for, in place of another one for them. With
    /// one for sequential packets the device offers these, too.
    pub fn with_socket(self, socket: HostSocket) -> io::Result<Self> {
        lock(&self.hub).add(socket)?;
        Ok(self)
    }

    /// The same for at most `max` connections at a time, whatever the process may have. Further ones are refused.
    #[must_use]
    pub fn with_max_connections(self, max: usize) -> Self {
        lock(&self.hub).set_max(max);
        self
    }

    /// The guest's address.
    pub fn cid(&self) -> Cid {
        self.cid
    }
}

impl LocalDevice for Vsock {
    fn info(&self) -> DeviceInfo {
        let packets = if lock(&self.hub).has_packets() { 1 << VIRTIO_VSOCK_F_SEQPACKET } else { 0 };
        DeviceInfo::new(DeviceType::VSOCK, &QUEUE_SIZES)
            .with_features(1 << VIRTIO_VSOCK_F_STREAM | packets)
            .with_config(8)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![RX, TX, EVENT]]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&u64::from(self.cid.get()).to_le_bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // The address is only read.
    }

    fn worker(&mut self, _group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let mut hub = lock(&self.hub);
        hub.seqpacket = activation.features & 1 << VIRTIO_VSOCK_F_SEQPACKET != 0;
        hub.events = activation.events.clone();
        drop(hub);
        Ok(Box::new(VsockWorker::new(Arc::clone(&self.hub))))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        lock(&self.hub).clear();
        self.counters.host_errors.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let hub = lock(&self.hub);
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(CID, self.cid.get());
        fields.bool(LOST, hub.lost || hub.has_connections());
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let (cid, lost) = (fields.u32(CID)?, fields.bool(LOST)?);
        fields.finish()?;
        let refused = |reason| StateError::Inconsistent { field: "address of the guest", reason };
        match (cid == self.cid.get(), handover.to_clone) {
            // The guest would go on with its own.
            (false, false) => return Err(refused("this device has another")),
            (true, true) => return Err(refused("a clone needs one of its own")),
            _ => {}
        }
        let mut hub = lock(&self.hub);
        hub.clear();
        // A transport reset has the driver of a clone ask for its address.
        hub.lost = lost || handover.to_clone;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // Sockets, their epoll instance and its timer; interrupts; a `Connect` adds its own.
        &[
            Syscall("accept4"),
            Syscall("close"),
            Syscall("connect"),
            Syscall("epoll_ctl"),
            Syscall("epoll_pwait"),
            Syscall("epoll_wait"),
            Syscall("fcntl"),
            Syscall("poll"),
            Syscall("ppoll"),
            Syscall("readv"),
            Syscall("recvfrom"),
            Syscall("sendmsg"),
            Syscall("sendto"),
            Syscall("setsockopt"),
            Syscall("shutdown"),
            Syscall("socket"),
            Syscall("timerfd_settime"),
            Syscall("write"),
        ]
    }

    fn identities(&self) -> Vec<Identity> {
        vec![Identity::new("CID", self.cid.to_string())]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.counters.show(visitor);
    }
}

#[cfg(test)]
mod tests;
