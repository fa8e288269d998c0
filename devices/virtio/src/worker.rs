//! Who runs the data plane: workers, and the runtimes that host them.

pub use ossature_bus::{Interest, Source, Turn};

use crate::{QueueBroken, VirtQueue};

/// The data plane of a queue group: owns its queues, runs on exactly one thread at a time.
pub trait Worker: Send {
    /// What wakes it. Asked once, when it starts.
    fn sources(&self) -> Vec<Source>;
    /// Does a bounded amount of work for one source. An error parks the worker for good: the runtime sets
    /// DEVICE_NEEDS_RESET. Also called once for each source right after the start, so that nothing that
    /// happened before is missed.
    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken>;
    /// Waits for what is in flight, flushes, and gives the queues back.
    fn finish(self: Box<Self>) -> Vec<VirtQueue>;
}

/// A place where workers run.
pub trait Runtime: Send + Sync {
    /// Starts a worker. `broken` is called once, on the worker's thread, if a turn fails.
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        broken: Box<dyn FnOnce(QueueBroken) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError>;
}

/// A worker that runs. Dropping it stops the worker.
pub trait WorkerHandle: Send {
    /// Stops the worker and takes it back; returns once no turn is running.
    fn stop(self: Box<Self>) -> Option<Box<dyn Worker>>;
}

/// A runtime that could not take a worker.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct RuntimeError {
    /// What failed.
    pub reason: String,
    /// The failure behind it.
    #[source]
    pub source: Option<std::io::Error>,
}
