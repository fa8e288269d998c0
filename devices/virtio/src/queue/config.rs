//! How a driver sets a queue up, and when that makes a queue.

use std::sync::Arc;

use ossature_bus::Event;
use ossature_memory::Dma;
use ossature_memory::vm_memory::GuestAddress;
use virtio_queue::{Queue, QueueState};

use super::VirtQueue;
use super::ring::Rings;

/// A queue as a driver describes it through a transport's registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueConfig {
    /// Its number in the device.
    pub index: u16,
    /// The largest size that the device offers.
    pub max_size: u16,
    /// Entries: a power of two, at most `max_size`.
    pub size: u16,
    /// Guest address of the descriptor table, 16-byte aligned.
    pub desc: u64,
    /// Guest address of the available ring, 2-byte aligned.
    pub avail: u64,
    /// Guest address of the used ring, 4-byte aligned.
    pub used: u64,
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub event_idx: bool,
    /// VIRTIO_F_INDIRECT_DESC was negotiated.
    pub indirect: bool,
    /// Where both rings start: 0, except for a queue that goes on after it was saved.
    pub start: u16,
}

/// A [`QueueConfig`] that describes no queue: what is wrong with it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QueueConfigError {
    /// The size is 0, no power of two or above the maximum, or an address is not aligned.
    #[error("queue {index}: {reason}")]
    Invalid {
        /// The queue's number.
        index: u16,
        /// What is wrong.
        reason: String,
    },
    /// A ring is not guest RAM from its first to its last byte.
    #[error("queue {index}: a ring is not guest RAM")]
    NotRam {
        /// The queue's number.
        index: u16,
    },
}

impl QueueConfig {
    /// Whether this describes a queue in `dma`.
    pub fn check(&self, dma: &Dma) -> Result<(), QueueConfigError> {
        self.rings(dma).map(drop)
    }

    /// The running queue. `doorbell` is readable after a kick; signalling `interrupt` raises the queue's
    /// interrupt.
    pub fn build(
        &self,
        dma: Dma,
        doorbell: Arc<Event>,
        interrupt: Arc<Event>,
    ) -> Result<VirtQueue, QueueConfigError> {
        let not_ram = |_| QueueConfigError::NotRam { index: self.index };
        let run = dma.run(GuestAddress(self.desc)).map_err(not_ram)?;
        Ok(VirtQueue::new(self, self.rings(&dma)?, run, doorbell, interrupt))
    }

    fn rings(&self, dma: &Dma) -> Result<Rings, QueueConfigError> {
        let index = self.index;
        let state = QueueState {
            max_size: self.max_size,
            next_avail: self.start,
            next_used: self.start,
            event_idx_enabled: self.event_idx,
            size: self.size,
            ready: true,
            desc_table: self.desc,
            avail_ring: self.avail,
            used_ring: self.used,
        };
        Queue::try_from(state).map_err(|e| QueueConfigError::Invalid { index, reason: e.to_string() })?;
        Rings::new(dma.clone(), self.size, self.desc, self.avail, self.used)
            .ok_or(QueueConfigError::NotRam { index })
    }
}
