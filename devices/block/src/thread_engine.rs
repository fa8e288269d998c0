//! The engine that has a thread of its own make the calls that block.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use ossature_bus::{DeviceError, Event, Panic, spawn_thread};
use ossature_memory::{Dma, DmaIoError, Segment};

use crate::sync_engine::carry_out;
use crate::{Completion, DiskIo, Engine, EngineSetup, Finished, Operation, Submitted};

/// Requests of a [`DiskIo`] one after another on a thread of its own, so that whoever serves the queue never waits for the
/// disk. If the disk panics, that request fails, and the thread goes on. The thread takes none of the signals that others
/// send to the process.
pub struct ThreadEngine {
    jobs: Option<Sender<Job>>,
    done: Arc<Done>,
    depth: usize,
    in_flight: usize,
    /// The memory of the newest request; others share it if theirs is the same.
    dma: Option<Arc<Dma>>,
    thread: Option<JoinHandle<()>>,
}

struct Done {
    completions: Mutex<VecDeque<Completion>>,
    ready: Event,
}

struct Job {
    token: u64,
    dma: Arc<Dma>,
    segments: Vec<Segment>,
    what: What,
}

/// An [`Operation`] without its segments.
#[derive(Clone, Copy)]
enum What {
    Read { offset: u64 },
    Write { offset: u64, durable: bool },
    Other(Operation<'static>),
}

impl fmt::Debug for ThreadEngine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ThreadEngine").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl ThreadEngine {
    /// Starts the thread, `disk-io`.
    pub fn new<D: DiskIo>(disk: Arc<D>, setup: &EngineSetup) -> Result<Self, DeviceError> {
        let ready = Event::new().map_err(|e| DeviceError::new("eventfd failed").with_source(e))?;
        let done = Arc::new(Done { completions: Mutex::default(), ready });
        let (jobs, queue) = channel();
        let there = Arc::clone(&done);
        let thread = spawn_thread("disk-io", move || serve(&*disk, &queue, &there))
            .map_err(|e| DeviceError::new("cannot start the thread disk-io").with_source(e))?;
        let (depth, thread) = (setup.depth.into(), Some(thread));
        Ok(Self { jobs: Some(jobs), done, depth, in_flight: 0, dma: None, thread })
    }
}

fn serve(disk: &impl DiskIo, jobs: &Receiver<Job>, done: &Done) {
    while let Ok(Job { token, dma, segments, what }) = jobs.recv() {
        let operation = match what {
            What::Read { offset } => Operation::Read { to: (&segments).into(), offset },
            What::Write { offset, durable } => Operation::Write { from: (&segments).into(), offset, durable },
            What::Other(operation) => operation,
        };
        let finished = Panic::catch(|| carry_out(disk, &dma, operation)).unwrap_or_else(|panic| {
            let reason = format!("the disk panicked: {}", panic.message);
            Finished::new(0, Err(io::Error::other(reason).into()))
        });
        done.completions().push_back(Completion::new(token, finished));
        // An event of ours cannot fail.
        let _ = done.ready.signal();
    }
}

impl Done {
    fn completions(&self) -> MutexGuard<'_, VecDeque<Completion>> {
        self.completions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine for ThreadEngine {
    fn submit(&mut self, mem: &Dma, token: u64, operation: Operation<'_>) -> Submitted {
        let (segments, what) = match operation {
            Operation::Read { to, offset } => (to.iter().collect(), What::Read { offset }),
            Operation::Write { from, offset, durable } => {
                (from.iter().collect(), What::Write { offset, durable })
            }
            Operation::Flush => (Vec::new(), What::Other(Operation::Flush)),
            Operation::Discard { offset, len } => {
                (Vec::new(), What::Other(Operation::Discard { offset, len }))
            }
            Operation::WriteZeroes { offset, len, unmap, durable } => {
                (Vec::new(), What::Other(Operation::WriteZeroes { offset, len, unmap, durable }))
            }
        };
        let dma = match &mut self.dma {
            Some(dma) if dma.shows_same_as(mem) => dma,
            other => other.insert(Arc::new(mem.clone())),
        };
        let job = Job { token, dma: Arc::clone(dma), segments, what };
        let room = self.in_flight < self.depth;
        match self.jobs.as_ref().filter(|_| room).map(|jobs| jobs.send(job)) {
            Some(Ok(())) => {
                self.in_flight += 1;
                Submitted::Pending
            }
            _ => {
                let busy = DmaIoError::Io(io::ErrorKind::ResourceBusy.into());
                Submitted::Finished(Finished::new(0, Err(busy)))
            }
        }
    }

    fn start(&mut self) {}

    fn reap(&mut self) -> Option<Completion> {
        let completion = self.done.completions().pop_front()?;
        self.in_flight -= 1;
        Some(completion)
    }

    fn in_flight(&self) -> usize {
        self.in_flight
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.done.ready.as_fd())
    }
}

impl Drop for ThreadEngine {
    fn drop(&mut self) {
        // The thread ends when it has done what was sent before.
        drop(self.jobs.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests;
