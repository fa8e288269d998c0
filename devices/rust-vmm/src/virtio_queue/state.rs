//! The states of queues, and chains, both ways.

use std::sync::Arc;

use ::virtio_queue::{DescriptorChain, Queue, QueueT};
use ossature_bus::{Event, Interrupt};
use ossature_memory::vm_memory::GuestMemory;
use ossature_memory::{Dma, Segment};
use ossature_virtio::{QueueBroken, QueueSetup, QueueState, features};

/// What a foreign queue is described by when it has stopped.
pub fn state_of(queue: &Queue) -> QueueState {
    let theirs = queue.state();
    let mut ours = QueueState::new(theirs.size).at(theirs.desc_table, theirs.avail_ring, theirs.used_ring);
    ours.ready = theirs.ready;
    (ours.next_avail, ours.next_used) = (theirs.next_avail, theirs.next_used);
    ours
}

/// The setup with which one of our devices, or a [`VirtQueue`](ossature_virtio::VirtQueue), goes on with a queue that a
/// foreign device has left. Of features, it has what the foreign queue knows of, EVENT_IDX; indirect descriptors, which
/// it always takes, are for the caller to allow.
pub fn setup_of(
    queue: &Queue,
    index: u16,
    dma: Dma,
    doorbell: Arc<Event>,
    interrupt: Interrupt,
) -> QueueSetup {
    let negotiated = if queue.event_idx_enabled() { features::EVENT_IDX } else { 0 };
    let setup = QueueSetup::new(index, state_of(queue), dma, doorbell, interrupt);
    setup.with_max_size(queue.max_size()).with_features(negotiated)
}

/// The foreign queue that goes on with what `setup` describes, on the driver's own ring and without any bounds but its
/// own: [`QueueWorker`](super::QueueWorker) is the way to have ours in front.
///
/// ```
/// use std::sync::Arc;
///
/// use ossature_bus::Event;
/// use ossature_memory::{Ram, RamConfig};
/// use ossature_rust_vmm::virtio_queue;
/// use ossature_virtio::{QueueSetup, QueueState};
///
/// let ram = Ram::new(&RamConfig::new(1 << 20))?;
/// let event = || Event::new().map(Arc::new);
/// let state = QueueState::new(8).at(0x1000, 0x2000, 0x3000).from_index(7);
/// let setup = QueueSetup::new(0, state, ram.dma(), event()?, event()?.into());
///
/// let foreign = virtio_queue::queue_of(&setup)?;
/// let again = virtio_queue::setup_of(&foreign, 0, ram.dma(), event()?, event()?.into());
/// assert_eq!(again.state, state);
/// let ours = again.build()?;
/// assert_eq!(ours.size(), 8);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn queue_of(setup: &QueueSetup) -> Result<Queue, ::virtio_queue::Error> {
    let QueueState { size, ready, desc, avail, used, next_avail, next_used, .. } = setup.state;
    Queue::try_from(::virtio_queue::QueueState {
        max_size: setup.max_size,
        next_avail,
        next_used,
        event_idx_enabled: setup.features & features::EVENT_IDX != 0,
        size,
        ready,
        desc_table: desc,
        avail_ring: avail,
        used_ring: used,
    })
}

/// The buffers of a foreign chain, with the bounds of ours: every segment is RAM from its first to its last byte, none
/// is empty, there is at least one, and the readable ones come first. A chain that virtio-queue cuts short is an error.
pub fn segments_of<M>(
    chain: DescriptorChain<M>,
    size: u16,
    dma: &Dma,
) -> Result<(Vec<Segment>, Vec<Segment>), QueueBroken>
where
    M: std::ops::Deref,
    M::Target: GuestMemory,
{
    let (mut readable, mut writable) = (Vec::new(), Vec::new());
    let mut ended = false;
    for desc in chain.take(size.into()) {
        let segment = Segment { addr: desc.addr(), len: desc.len() };
        if segment.len == 0 {
            return Err(QueueBroken::EmptyDescriptor);
        }
        let not_ram = QueueBroken::NotRam { addr: segment.addr.0, len: segment.len };
        dma.check(segment.addr, segment.len.into()).map_err(|_| not_ram)?;
        match (desc.is_write_only(), writable.is_empty()) {
            (true, _) => writable.push(segment),
            (false, true) => readable.push(segment),
            (false, false) => return Err(QueueBroken::Order),
        }
        ended = !desc.has_next();
    }
    if ended { Ok((readable, writable)) } else { Err(QueueBroken::ChainLength { size }) }
}
