//! The block device's data plane: pops requests, has them served, publishes a batch at a time.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use ossature_bus::EventSink;
use ossature_memory::Dma;
use virtio_bindings::virtio_blk::VIRTIO_BLK_F_FLUSH;

use super::request::Executor;
use super::{Blk, Counters, DiskId, DiskIo};
use crate::{Interest, QueueBroken, Source, Start, StartError, Turn, VirtQueue, Worker};

/// Requests that a turn serves at most.
pub(super) const TURN_REQUESTS: u32 = 64;
/// Bytes after which a turn takes no further request: a batch is answered only when it ends, and other
/// devices wait for it.
pub(super) const TURN_BYTES: u64 = 4 << 20;

#[derive(Debug)]
struct BlkWorker<D> {
    queue: VirtQueue,
    mem: Dma,
    disk: Arc<D>,
    id: DiskId,
    counters: Arc<Counters>,
    events: EventSink,
    write_through: bool,
}

pub(super) fn start<D: DiskIo>(blk: &Blk<D>, start: Start) -> Result<Box<dyn Worker>, StartError> {
    let Start { features, mem, queues, config: _, events } = start;
    let queue = queues.into_iter().next().ok_or_else(|| StartError {
        reason: "the driver enabled no queue of its block device".to_owned(),
        source: None,
    })?;
    Ok(Box::new(BlkWorker {
        queue,
        mem,
        disk: Arc::clone(&blk.disk),
        id: blk.id,
        counters: Arc::clone(&blk.counters),
        events,
        write_through: features & 1 << VIRTIO_BLK_F_FLUSH == 0,
    }))
}

impl<D: DiskIo> Worker for BlkWorker<D> {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.queue.doorbell().as_raw_fd(), interest: Interest::Readable }]
    }

    fn turn(&mut self, _token: u16) -> Result<Turn, QueueBroken> {
        let mut requests = 0;
        let mut bytes = 0;
        let executor = Executor {
            disk: &*self.disk,
            id: &self.id,
            counters: &self.counters,
            events: &self.events,
            write_through: self.write_through,
        };
        self.queue.unpark()?;
        loop {
            while let Some(chain) = self.queue.pop()? {
                let done = executor.serve(&self.mem, &chain);
                self.queue.complete(chain, done.written)?;
                requests += 1;
                bytes += done.moved;
                if requests >= TURN_REQUESTS || bytes >= TURN_BYTES {
                    self.queue.flush()?;
                    return Ok(Turn::Again);
                }
            }
            self.queue.flush()?;
            if !self.queue.park()? {
                return Ok(Turn::Sleep);
            }
        }
    }

    fn finish(self: Box<Self>) -> Vec<VirtQueue> {
        vec![self.queue]
    }
}
