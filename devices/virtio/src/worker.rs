//! The data plane: workers, and the runtimes that host them.

use ossature_bus::DeviceError;
pub use ossature_bus::{Interest, Source, Turn};

use crate::{Failure, QueueBroken, VirtQueue};

/// What becomes of a queue that a [`Worker`] is to give back.
#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // the large one is what it is made for, and it is made once a stop
pub enum Removed {
    /// Here it is: nothing of it is in flight.
    Queue(VirtQueue),
    /// Something is in flight: the worker takes nothing more from the queue, and gives it back after some turns.
    Draining,
    /// The worker does not have it.
    Unknown,
}

impl From<Option<VirtQueue>> for Removed {
    fn from(queue: Option<VirtQueue>) -> Self {
        queue.map_or(Self::Unknown, Self::Queue)
    }
}

/// The data plane of some of a device's queues: owns them, and runs on one thread at a time.
pub trait Worker: Send {
    /// What wakes it beside the doorbells of its queues, such as a descriptor of the host's. Asked once, when it
    /// starts. The tokens are not below the number of the device's queues.
    fn sources(&self) -> Vec<Source>;
    /// Takes a queue in. It has a turn soon.
    fn add_queue(&mut self, queue: VirtQueue);
    /// Gives a queue back, between two turns: chains that were popped and not begun with go back with
    /// [`unpop`](VirtQueue::unpop). Asked again after each turn while it answers [`Removed::Draining`].
    fn remove_queue(&mut self, index: u16) -> Removed;
    /// Does a bounded amount of work for the queue with the number `token`, which it may have given back by now, or for
    /// one of its [sources](Self::sources). Also called once for each of them right after the start, so that nothing
    /// that happened before is missed.
    ///
    /// If it fails or panics, the worker has no more turns, and the device needs a reset.
    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken>;
}

/// A place where workers run.
pub trait Runtime: Send + Sync {
    /// Starts a worker that has no queues yet. `failed` is called once, on the worker's thread, when a turn fails.
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        failed: Box<dyn FnOnce(Failure) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError>;
}

/// A worker that runs. Dropping it waits for the turn that is under way, and drops the worker with all queues that it
/// has.
pub trait WorkerHandle: Send {
    /// Gives the worker a queue. One that has failed, which it has told or is about to, loses it.
    fn add_queue(&self, queue: VirtQueue) -> Result<(), DeviceError>;
    /// Takes a queue out of the worker, when nothing of it is in flight: until then the worker has turns, where it
    /// always has them. `None` if the worker failed, or does not have it.
    fn remove_queue(&self, index: u16) -> Option<VirtQueue>;
}
