//! What a virtio device says about itself, and how its queues start.

use std::fmt;
use std::sync::Arc;

use ossature_bus::{EventSink, MetricVisitor, State, Syscall};
use ossature_memory::Dma;

use crate::{VirtQueue, Worker};

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

/// What a group of queues starts with.
#[derive(Debug)]
pub struct Start {
    /// The negotiated features, transport bits included.
    pub features: u64,
    /// The device's view of guest RAM.
    pub mem: Dma,
    /// The group's queues that the driver has enabled, ascending.
    pub queues: Vec<VirtQueue>,
    /// For a worker that changes what the device's configuration space reads.
    pub config: ConfigInterrupt,
    /// For a worker whose host side fails: what the VMM should know, each condition once until the reset.
    pub events: EventSink,
}

/// A queue group that could not start.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct StartError {
    /// What failed.
    pub reason: String,
    /// The failure behind it.
    #[source]
    pub source: Option<std::io::Error>,
}

/// A virtio device, whatever the transport. All of it belongs to the control plane (under the transport's
/// lock); the data plane is the [`Worker`] that [`start`](Self::start) makes.
pub trait VirtioDevice: Send {
    /// Its type.
    fn device_type(&self) -> DeviceType;
    /// The feature bits that it offers (device-specific bits and ring features that it copes with; the
    /// transport adds VERSION_1, EVENT_IDX and INDIRECT_DESC).
    fn features(&self) -> u64;
    /// The largest size of each queue, powers of two.
    fn queues(&self) -> &[u16];
    /// The groups in which queues start: each a list of queue indices, served by one worker.
    fn groups(&self) -> Vec<Vec<u16>>;
    /// Length in bytes of its configuration space.
    fn config_len(&self) -> u32;
    /// Reads configuration space; the transport has checked the bounds.
    fn read_config(&self, offset: u32, buf: &mut [u8]);
    /// Writes configuration space; the transport has checked the bounds.
    fn write_config(&mut self, offset: u32, data: &[u8]);
    /// Starts a group: its queues move into the worker.
    fn start(&mut self, group: usize, start: Start) -> Result<Box<dyn Worker>, StartError>;
    /// Back to the state before any driver came. All groups have finished.
    fn reset(&mut self);
    /// Whether and how it can be saved.
    fn state(&self) -> State;
    /// The system calls that it makes once it runs.
    fn syscalls(&self) -> &'static [Syscall];
    /// Shows its counters.
    fn metrics(&self, visitor: &mut dyn MetricVisitor);
}
