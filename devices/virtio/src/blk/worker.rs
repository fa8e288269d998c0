//! The block device's data plane: pops requests, has them served, publishes a batch at a time.

use std::sync::Arc;

use ossature_block::{Disk, DiskIo};
use ossature_bus::EventSink;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::DiskId;
use super::counters::Counters;
use super::request::Executor;
use crate::{Activation, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// Requests that a turn serves at most.
pub(super) const TURN_REQUESTS: u64 = 64;
/// Bytes after which a turn takes no further request: a batch is answered only when it ends, and other
/// devices wait for it.
pub(super) const TURN_BYTES: u64 = 4 << 20;
/// What a request counts for beside its bytes.
const REQUEST: u64 = TURN_BYTES / TURN_REQUESTS;

#[derive(Debug)]
pub(super) struct BlkWorker<D> {
    queue: Option<VirtQueue>,
    disk: Arc<D>,
    id: DiskId,
    counters: Arc<Counters>,
    events: EventSink,
    write_through: bool,
}

impl<D> BlkWorker<D> {
    pub(super) fn new(disk: Arc<D>, id: DiskId, counters: Arc<Counters>, activation: &Activation) -> Self {
        let write_through = activation.features & 1 << VIRTIO_BLK_F_FLUSH == 0;
        Self { queue: None, disk, id, counters, events: activation.events.clone(), write_through }
    }
}

impl<D: Disk + DiskIo> Worker for BlkWorker<D> {
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        self.queue = Some(queue);
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        self.queue.take().into()
    }

    fn turn(&mut self, _token: u16) -> Result<Turn, QueueBroken> {
        let Some(queue) = &mut self.queue else { return Ok(Turn::Sleep) };
        let mut work = 0;
        let executor = Executor {
            disk: &*self.disk,
            id: &self.id,
            counters: &self.counters,
            events: &self.events,
            write_through: self.write_through,
        };
        queue.disable_kicks()?;
        loop {
            while let Some(chain) = queue.pop()? {
                let done = executor.serve(queue.dma(), &chain);
                queue.complete(chain, done.written)?;
                work += REQUEST + done.moved;
                if work >= TURN_BYTES {
                    queue.flush()?;
                    return Ok(Turn::Again);
                }
            }
            queue.flush()?;
            if !queue.enable_kicks()? {
                return Ok(Turn::Sleep);
            }
        }
    }
}
