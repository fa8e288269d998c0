//! Adapters to rust-vmm: a device on virtio-queue's queue behind ours, and the same on the driver's own ring.

use std::sync::Arc;

use ossature::memory::GuestMmap;
use ossature::virtio::{Activation, QueueSetup, QueueState, Turn, Worker};
use ossature_rust_vmm::virtio_queue::{HandlerError, Queue, QueueT, QueueWorker, queue_of};

use super::rings::{Layout, QueueRig};

/// What a device does that answers at once: walks each chain, and gives it back.
#[inline]
fn answer(queue: &mut Queue, memory: &GuestMmap) -> Result<u64, HandlerError> {
    let mut bytes = 0;
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        bytes += chain.map(|desc| u64::from(desc.len())).sum::<u64>();
        queue.add_used(memory, head, 64)?;
    }
    Ok(bytes)
}

type Handler = fn(u16, &mut Queue, &Arc<GuestMmap>) -> Result<(), HandlerError>;

fn handle(_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>) -> Result<(), HandlerError> {
    answer(queue, memory).map(drop)
}

/// Their queue behind ours.
pub struct Behind {
    rig: QueueRig,
    worker: QueueWorker<Handler>,
}

impl Behind {
    pub fn new(descriptors: u64, layout: Layout) -> Self {
        let mut rig = QueueRig::new(descriptors, layout);
        let mut worker = QueueWorker::new(handle as Handler, &Activation::new(0, rig.dma.clone()));
        let event = || Arc::new(ossature::bus::Event::new().unwrap());
        let other = rig.driver.queue(0, &rig.dma, &event(), &event());
        worker.add_queue(std::mem::replace(&mut rig.queue, other));
        Self { rig, worker }
    }

    #[inline]
    pub fn batch(&mut self) {
        self.rig.driver.offer();
        assert!(matches!(self.worker.turn(0), Ok(Turn::Sleep)));
    }
}

/// Their queue alone.
pub struct Alone {
    rig: QueueRig,
    queue: Queue,
}

impl Alone {
    pub fn new(descriptors: u64, layout: Layout) -> Self {
        let rig = QueueRig::new(descriptors, layout);
        let ring = &rig.driver.ring;
        let state = QueueState::new(ring.size).at(ring.desc, ring.avail, ring.used);
        let event = || Arc::new(ossature::bus::Event::new().unwrap());
        let setup = QueueSetup::new(0, state, rig.dma.clone(), event(), event().into());
        let queue = queue_of(&setup).unwrap();
        Self { rig, queue }
    }

    #[inline]
    pub fn batch(&mut self) {
        self.rig.driver.offer();
        let memory = self.rig.dma.memory();
        answer(&mut self.queue, memory).unwrap();
        self.queue.needs_notification(memory).unwrap();
        assert!(!self.queue.enable_notification(memory).unwrap());
    }
}
