//! All that a queue starts with, wherever it is served: a local device makes a [`VirtQueue`] of it, another takes the
//! addresses and descriptors out of it.

use std::sync::Arc;

use ossature_bus::{Event, Interrupt};
use ossature_memory::Dma;
use ossature_memory::vm_memory::GuestAddress;
use virtio_queue::Queue;

use super::ring::Rings;
use super::{QueueState, VirtQueue};
use crate::features::{EVENT_IDX, INDIRECT_DESC};

/// A queue that is to start.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct QueueSetup {
    /// Its number in the device.
    pub index: u16,
    /// The largest size that the device offers.
    pub max_size: u16,
    /// What the driver has set up, and where the queue goes on.
    pub state: QueueState,
    /// The negotiated features. Those of rings are in [`features`](crate::features).
    pub features: u128,
    /// The device's view of guest RAM.
    pub dma: Dma,
    /// Readable after the driver has kicked.
    pub doorbell: Arc<Event>,
    /// Tells the driver of used buffers.
    pub interrupt: Interrupt,
}

/// A [`QueueSetup`] that describes no queue: what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueSetupError {
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
    /// More chains are said to be with the device than the queue has entries.
    #[error("queue {index}: the indices {next_avail} and {next_used} are further apart than its size")]
    Indices {
        /// The queue's number.
        index: u16,
        /// See [`QueueState::next_avail`].
        next_avail: u16,
        /// See [`QueueState::next_used`].
        next_used: u16,
    },
}

impl QueueSetup {
    /// Queue `index` of at most as many entries as `state` has, without features.
    pub fn new(index: u16, state: QueueState, dma: Dma, doorbell: Arc<Event>, interrupt: Interrupt) -> Self {
        Self { index, max_size: state.size, state, features: 0, dma, doorbell, interrupt }
    }

    /// The same with these negotiated features.
    #[must_use]
    pub fn with_features(mut self, features: u128) -> Self {
        self.features = features;
        self
    }

    /// The same for a queue of up to `max_size` entries.
    #[must_use]
    pub fn with_max_size(mut self, max_size: u16) -> Self {
        self.max_size = max_size;
        self
    }

    /// Fails if this does not describe a queue in its RAM.
    pub fn check(&self) -> Result<(), QueueSetupError> {
        check(self.index, self.max_size, &self.state, &self.dma)
    }

    /// The running queue.
    pub fn build(self) -> Result<VirtQueue, QueueSetupError> {
        let Self { index, max_size, state, features, dma, doorbell, interrupt } = self;
        let rings = rings(index, max_size, &state, &dma)?;
        let run = dma.run(GuestAddress(state.desc)).map_err(|_| QueueSetupError::NotRam { index })?;
        Ok(VirtQueue {
            index,
            size: state.size,
            event_idx: features & EVENT_IDX != 0,
            indirect: features & INDIRECT_DESC != 0,
            rings,
            run,
            doorbell,
            interrupt,
            next_avail: state.next_avail,
            ready: 0,
            next_used: state.next_used,
            published: state.next_used,
            held: vec![false; state.size.into()].into(),
            returned: Vec::new(),
            spare: None,
            spares: Vec::new(),
            broken: None,
            state,
        })
    }
}

/// Fails if `state` does not describe a queue in `dma`.
pub(crate) fn check(index: u16, max_size: u16, state: &QueueState, dma: &Dma) -> Result<(), QueueSetupError> {
    rings(index, max_size, state, dma).map(drop)
}

fn rings(index: u16, max_size: u16, state: &QueueState, dma: &Dma) -> Result<Rings, QueueSetupError> {
    let QueueState { size, desc, avail, used, next_avail, next_used, ready: _ } = *state;
    let registers = virtio_queue::QueueState {
        max_size,
        next_avail,
        next_used,
        event_idx_enabled: false,
        size,
        ready: true,
        desc_table: desc,
        avail_ring: avail,
        used_ring: used,
    };
    Queue::try_from(registers).map_err(|e| QueueSetupError::Invalid { index, reason: e.to_string() })?;
    if next_avail.wrapping_sub(next_used) > size {
        return Err(QueueSetupError::Indices { index, next_avail, next_used });
    }
    Rings::new(dma.clone(), size, desc, avail, used).ok_or(QueueSetupError::NotRam { index })
}
