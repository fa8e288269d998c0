//! The runtimes that host workers: an event loop that somebody runs, a shared thread, a thread each, or the
//! caller's.

#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

use ossature_bus::{EventLoop, Handler, Hosted, LoopThread, Source, Turn};

use crate::{QueueBroken, Runtime, RuntimeError, Worker, WorkerHandle};

/// What to call once if a worker's turn fails.
type Broken = Box<dyn FnOnce(QueueBroken) + Send>;

/// A worker on an event loop.
struct OnLoop {
    worker: Box<dyn Worker>,
    /// Taken when a turn fails: from then on there are no turns.
    broken: Option<Broken>,
}

impl Handler for OnLoop {
    fn sources(&self) -> Vec<Source> {
        self.worker.sources()
    }

    fn turn(&mut self, token: u16) -> Turn {
        if self.broken.is_none() {
            return Turn::Sleep;
        }
        self.worker.turn(token).unwrap_or_else(|why| {
            if let Some(broken) = self.broken.take() {
                broken(why);
            }
            Turn::Sleep
        })
    }
}

/// Stops the worker when dropped, and then the thread that was only there for it.
struct Handle {
    hosted: Hosted<OnLoop>,
    _thread: Option<Arc<LoopThread>>,
}

impl WorkerHandle for Handle {
    fn stop(self: Box<Self>) -> Option<Box<dyn Worker>> {
        self.hosted.take_back().map(|hosted| hosted.worker)
    }
}

fn host(
    event_loop: &EventLoop,
    thread: Option<&Arc<LoopThread>>,
    worker: Box<dyn Worker>,
    broken: Broken,
) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
    let hosted = event_loop
        .host(OnLoop { worker, broken: Some(broken) })
        .map_err(|e| RuntimeError { reason: e.to_string(), source: Some(e.source) })?;
    Ok(Box::new(Handle { hosted, _thread: thread.cloned() }))
}

fn start(name: &str) -> Result<Arc<LoopThread>, RuntimeError> {
    let failed =
        |e: io::Error| RuntimeError { reason: format!("no thread for {name}: {e}"), source: Some(e) };
    LoopThread::start(name).map(Arc::new).map_err(failed)
}

/// Workers on the loop of somebody who runs it, such as the VMM on its main thread. Stopping a worker waits for
/// its turn, if it takes one, but not for the thread that runs the loop.
impl Runtime for EventLoop {
    fn spawn(
        &self,
        _: &str,
        worker: Box<dyn Worker>,
        broken: Broken,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        host(self, None, worker, broken)
    }
}

/// One thread that hosts many workers. Each wake-up is a turn, and a worker that wants another one right
/// away gets it after all others had theirs, so that no worker starves another for longer than a turn.
///
/// Stopping a worker waits for its turn that is running; it must not be done from inside that one.
#[derive(Debug)]
pub struct SharedLoop(Arc<LoopThread>);

impl SharedLoop {
    /// Starts the thread; `name` is what the host's tools show (15 bytes of it).
    pub fn new(name: &str) -> Result<Self, RuntimeError> {
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
        broken: Broken,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        host(self.event_loop(), Some(&self.0), worker, broken)
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
        broken: Broken,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        let thread = start(name)?;
        host(thread.event_loop(), Some(&thread), worker, broken)
    }
}

/// A runtime without threads: workers take their turns inside [`pump`](Self::pump). For tests, and for VMMs that
/// have a loop of another kind.
#[derive(Clone)]
pub struct Inline(EventLoop);

impl Inline {
    /// A runtime without workers.
    pub fn new() -> Result<Self, RuntimeError> {
        EventLoop::new().map(Self).map_err(failed)
    }

    /// Gives every worker its turns until none has anything left to do. Never waits for a descriptor.
    pub fn pump(&self) -> Result<(), RuntimeError> {
        while self.pass()? {}
        Ok(())
    }

    /// One pass of [`pump`](Self::pump): at most a turn for each source. False where there was nothing to do.
    pub fn pass(&self) -> Result<bool, RuntimeError> {
        self.0.pass().map_err(failed)
    }
}

fn failed(e: io::Error) -> RuntimeError {
    RuntimeError { reason: format!("the event loop failed: {e}"), source: Some(e) }
}

impl Runtime for Inline {
    fn spawn(
        &self,
        name: &str,
        worker: Box<dyn Worker>,
        broken: Broken,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        self.0.spawn(name, worker, broken)
    }
}
