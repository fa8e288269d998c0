//! The runtimes that host workers: an event loop that the VMM runs, a shared thread, a thread each, or the caller's.

mod hosted;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use ossature_bus::{DeviceError, EventLoop, LoopThread};

use self::hosted::{Failed, host};
use crate::{Runtime, Worker, WorkerHandle};

fn start(name: &str) -> Result<Arc<LoopThread>, DeviceError> {
    let failed = |e: io::Error| DeviceError::new(format!("cannot start the thread {name}")).with_source(e);
    LoopThread::start(name).map(Arc::new).map_err(failed)
}

/// Workers on a loop that the VMM runs, on its main thread for instance. Stopping a queue waits for a turn of its
/// worker that is under way, and for what is in flight, which takes turns: on the waiting thread, if no thread runs the
/// loop and the worker gets no turn for some milliseconds. A thread that passes the loop from another one may so wait for
/// the thread that stops the queue, such as a vCPU's, between passes; inside of a turn of the loop it must not.
impl Runtime for EventLoop {
    fn spawn(
        &self,
        _: &str,
        worker: Box<dyn Worker>,
        failed: Failed,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError> {
        host(self, None, worker, failed)
    }
}

/// One thread that hosts many workers. Each wake-up is a turn, and a worker that wants another one right
/// away gets it after all others had theirs, so that no worker starves another for longer than a turn.
///
/// Stopping a queue waits for a turn of its worker that is under way, and must not be done from inside that one.
#[derive(Debug)]
pub struct SharedLoop(Arc<LoopThread>);

impl SharedLoop {
    /// Starts the thread; `name` is what the host's tools show (15 bytes of it).
    pub fn new(name: &str) -> Result<Self, DeviceError> {
        start(name).map(Self)
    }

    /// Its loop, for what else waits for descriptors.
    pub fn event_loop(&self) -> &EventLoop {
        self.0.event_loop()
    }
}

impl Runtime for SharedLoop {
    fn spawn(
        &self,
        _: &str,
        worker: Box<dyn Worker>,
        failed: Failed,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError> {
        host(self.event_loop(), Some(&self.0), worker, failed)
    }
}

/// A thread for each worker, named after it. The thread ends with its worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct DedicatedThread;

impl Runtime for DedicatedThread {
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        failed: Failed,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError> {
        let thread = start(name)?;
        host(thread.event_loop(), Some(&thread), worker, failed)
    }
}

/// A runtime without threads: workers take their turns inside [`pump`](Self::pump). For tests, and for VMMs that
/// have a loop of another kind.
#[derive(Clone)]
pub struct Inline(EventLoop);

impl Inline {
    /// A runtime without workers.
    pub fn new() -> Result<Self, DeviceError> {
        EventLoop::new().map(Self).map_err(failed)
    }

    /// Gives every worker its turns until none has anything left to do. Never waits for a descriptor.
    pub fn pump(&self) -> Result<(), DeviceError> {
        while self.pass()? {}
        Ok(())
    }

    /// One pass of [`pump`](Self::pump): at most a turn for each source. Returns false if there was nothing to do.
    pub fn pass(&self) -> Result<bool, DeviceError> {
        self.0.pass().map_err(failed)
    }
}

fn failed(e: io::Error) -> DeviceError {
    DeviceError::new("the event loop failed").with_source(e)
}

impl Runtime for Inline {
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        failed: Failed,
    ) -> Result<Box<dyn WorkerHandle>, DeviceError> {
        self.0.spawn(name, worker, failed)
    }
}
