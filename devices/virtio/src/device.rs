//! What a virtio device is for the transport in front of it.

use std::fmt;
use std::sync::Arc;

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, EventSink, Handover, Identity, MetricVisitor, Syscall};
use ossature_memory::Dma;

use crate::{QueueSetup, QueueState};

/// A device type number (virtio 1.2, section 5), by which a guest finds its driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DeviceType(pub u32);

impl DeviceType {
    /// Network card (5.1).
    pub const NET: Self = Self(1);
    /// Block device (5.2).
    pub const BLOCK: Self = Self(2);
    /// Console (5.3).
    pub const CONSOLE: Self = Self(3);
    /// Entropy source (5.4).
    pub const ENTROPY: Self = Self(4);
    /// Socket device (5.10).
    pub const VSOCK: Self = Self(19);
}

/// What a device says about itself. Constant over its life.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// Its type.
    pub device_type: DeviceType,
    /// The feature bits that it offers: those of its type, and ring features that it copes with. The transport adds
    /// VERSION_1, EVENT_IDX, INDIRECT_DESC and RING_RESET.
    pub features: u128,
    /// The largest size of each queue, powers of two.
    pub queues: Vec<u16>,
    /// Length in bytes of its configuration space.
    pub config_len: u32,
}

impl DeviceInfo {
    /// A device with queues of these sizes, without features of its own and without configuration space.
    pub fn new(device_type: DeviceType, queues: &[u16]) -> Self {
        Self { device_type, features: 0, queues: queues.to_vec(), config_len: 0 }
    }

    /// The same with these features.
    #[must_use]
    pub fn with_features(mut self, features: u128) -> Self {
        self.features = features;
        self
    }

    /// The same with `len` bytes of configuration space.
    #[must_use]
    pub fn with_config(mut self, len: u32) -> Self {
        self.config_len = len;
        self
    }
}

/// Tells the driver that configuration space has changed: the transport reads it again and raises the
/// configuration-change interrupt. Never waits.
#[derive(Clone)]
pub struct ConfigInterrupt(Arc<dyn Fn() + Send + Sync>);

impl ConfigInterrupt {
    /// One that calls `raise`, which must not wait for any worker.
    pub fn new(raise: impl Fn() + Send + Sync + 'static) -> Self {
        Self(Arc::new(raise))
    }

    /// Raises it. The device already answers with the new values.
    pub fn raise(&self) {
        (self.0)();
    }
}

impl fmt::Debug for ConfigInterrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ConfigInterrupt")
    }
}

/// What all queues of a device have in common from the moment in which the driver is ready.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Activation {
    /// The negotiated features, those of rings and transport included.
    pub features: u128,
    /// The device's view of guest RAM.
    pub dma: Dma,
    /// For a device that changes what its configuration space reads.
    pub config: ConfigInterrupt,
    /// For a device whose host side fails: what the VMM should know, each condition once until the reset.
    pub events: EventSink,
    /// For a device that cannot go on.
    pub failure: FailureSink,
}

impl Activation {
    /// With these features; configuration changes, failures and events are dropped.
    pub fn new(features: u128, dma: Dma) -> Self {
        let (config, events) = (ConfigInterrupt::new(|| ()), EventSink::discard());
        Self { features, dma, config, events, failure: FailureSink::new(|_| ()) }
    }
}

/// Why a device cannot go on until its driver resets it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Failure {
    /// The driver broke a ring, or something of the host that the device cannot do without failed.
    NeedsReset {
        /// What happened.
        reason: String,
    },
    /// Code of the device panicked.
    Panicked {
        /// What the panic said.
        message: String,
    },
}

/// Where a device says that it cannot go on: the transport sets DEVICE_NEEDS_RESET and tells the VMM. Never waits.
#[derive(Clone)]
pub struct FailureSink(Arc<dyn Fn(Failure) + Send + Sync>);

impl FailureSink {
    /// One that calls `f`, from any thread; `f` must not wait for any worker.
    pub fn new(f: impl Fn(Failure) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// Reports a failure.
    pub fn report(&self, failure: Failure) {
        (self.0)(failure);
    }
}

impl fmt::Debug for FailureSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailureSink")
    }
}

/// A virtio device, whatever the transport and wherever its queues are served: here, in the host's kernel, or in another
/// process. A device that is served here implements [`LocalDevice`](crate::LocalDevice) instead, which is simpler.
///
/// All of this is called by the transport, one call at a time, on the vCPUs' threads and on the VMM's. None of it may
/// wait for a vCPU, or for more than the end of what is in flight.
///
/// Its life: it is inactive. When the driver is ready it is [activated](Self::activate), then queues
/// [start](Self::start_queue) and [stop](Self::stop_queue) in any order, until a [reset](Self::reset) makes it inactive
/// again. While the machine is quiet no queue runs, and the device holds nothing of the host that only one device at a
/// time may hold: the first call before any activation is [`resume`](Self::resume).
pub trait VirtioDevice: Send {
    /// What it says about itself.
    fn info(&self) -> DeviceInfo;
    /// Reads configuration space; the transport has checked the bounds.
    fn read_config(&self, offset: u32, buf: &mut [u8]);
    /// Writes configuration space; the transport has checked the bounds.
    fn write_config(&mut self, offset: u32, data: &[u8]);
    /// The driver is ready. No queue runs yet.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// Starts a queue that does not run. What its driver has offered by now is served without a kick.
    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError>;
    /// Stops a queue that runs: returns when nothing of it is in flight. The returned state is the one that it was
    /// started with, except for the indices; it is not ready if it cannot go on.
    fn stop_queue(&mut self, index: u16) -> Result<QueueState, DeviceError>;
    /// The driver has disabled a queue, or reset it alone. It does not run, and if it starts again, it starts anew: what
    /// the device remembers of a buffer that it had begun with is void. Other queues may run.
    fn forget_queue(&mut self, index: u16);
    /// Gives up what the device holds of the host. No queue runs.
    fn quiesce(&mut self) -> Result<(), DeviceError>;
    /// Takes hold of it, at first or again, before queues start.
    fn resume(&mut self) -> Result<(), DeviceError>;
    /// Back to the state before any driver came. No queue runs.
    fn reset(&mut self);
    /// Returns its state without queues, features and status, which are the transport's. Called while it is quiet.
    fn save(&mut self) -> Result<DeviceState, DeviceError>;
    /// Becomes what the device was that gave the state, and is inactive then. Called while it is quiet. If the state is
    /// refused, nothing has changed.
    fn restore(&mut self, handover: Handover) -> Result<(), StateError>;
    /// The system calls that it makes once it runs.
    fn syscalls(&self) -> &'static [Syscall];
    /// Shows its counters.
    fn metrics(&self, visitor: &mut dyn MetricVisitor);
    /// See [`Device::identities`](ossature_bus::Device::identities).
    fn identities(&self) -> Vec<Identity> {
        Vec::new()
    }
}
