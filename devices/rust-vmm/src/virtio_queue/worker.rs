//! A worker of ours that gives a device foreign queues.

use std::error::Error;
use std::sync::Arc;

use ::virtio_queue::{Queue, QueueT};
use ossature_bus::DeviceError;
use ossature_memory::{Dma, GuestMmap};
use ossature_virtio::{
    Activation, Failure, FailureSink, QueueBroken, Removed, Source, Turn, VirtQueue, Worker,
};

use super::running::Running;

/// Why a device cannot go on until its driver resets it.
pub type HandlerError = Box<dyn Error + Send + Sync>;

/// The data plane of a device that was written for [`virtio_queue`](::virtio_queue).
///
/// The memory that its methods get is the guest's RAM and the rings of these queues, and counts for that call only: take it
/// anew in each, and keep no clone of the [`Arc`]. RAM comes and goes, and each start of a queue has a ring of its own at
/// the same address, so that a queue would be read from its earlier ring through memory that was kept. A request that the driver got
/// wrong is no error: the device answers it, and gives its chain back. What it does with the notifications of a queue
/// (`enable_notification` and its like) has no effect: the [worker](QueueWorker) asks for kicks and raises interrupts.
pub trait QueueHandler: Send {
    /// See [`Worker::sources`].
    fn sources(&self) -> Vec<Source>;
    /// Queue `token` may have new chains, or the source with that token is ready: takes chains from any of the queues,
    /// now or later, and adds them to the used ring, in any order, now or in another call.
    fn process(
        &mut self,
        token: u16,
        queues: &mut Queues,
        memory: &Arc<GuestMmap>,
    ) -> Result<(), HandlerError>;
    /// The queue is to stop. What the device has taken from it and has not begun with goes back, by
    /// `go_to_previous_position` or to the used ring; the rest it finishes in its next calls. Called after each of
    /// them until nothing of the queue is with the device.
    fn stop_queue(
        &mut self,
        index: u16,
        queue: &mut Queue,
        memory: &Arc<GuestMmap>,
    ) -> Result<(), HandlerError>;
}

/// A device that answers each chain before the call returns: gets the queue's number, the queue and the memory.
impl<F> QueueHandler for F
where
    F: FnMut(u16, &mut Queue, &Arc<GuestMmap>) -> Result<(), HandlerError> + Send,
{
    fn sources(&self) -> Vec<Source> {
        Vec::new()
    }

    fn process(
        &mut self,
        token: u16,
        queues: &mut Queues,
        memory: &Arc<GuestMmap>,
    ) -> Result<(), HandlerError> {
        queues.get(token).map_or(Ok(()), |queue| self(token, queue, memory))
    }

    fn stop_queue(&mut self, _: u16, _: &mut Queue, _: &Arc<GuestMmap>) -> Result<(), HandlerError> {
        Ok(())
    }
}

/// The queues of one worker that run.
#[derive(Debug, Default)]
pub struct Queues(Vec<Running>);

impl Queues {
    /// Queue `index`, if it runs.
    pub fn get(&mut self, index: u16) -> Option<&mut Queue> {
        self.find(index).map(|running| &mut running.foreign)
    }

    fn find(&mut self, index: u16) -> Option<&mut Running> {
        self.0.iter_mut().find(|running| running.index() == index)
    }
}

/// A [`Worker`] for a [`QueueHandler`].
///
/// Each of our queues has a [`Queue`] behind it, on a ring that is the host's own. Only chains that our queue
/// has popped get there, and what is used there completes them. So our queue's bounds hold for a device that has none: a
/// ring that its driver breaks is found before the device sees anything of it, no more is in flight than the queue has
/// entries, each call of the device finds at most 64 chains that were not there before beside those that it has left, all
/// of which nobody rewrites while it walks them, no used length exceeds what the chain has, and each completion is counted
/// once.
///
/// A queue's ring takes memory that its driver cannot exceed, for a size of 256 less than 0.7 MiB and for the largest, of
/// 32768, less than 13 MiB. Chains of more than 8 descriptors share it: of a queue of more than 181 entries,
/// 32768 / size of them are with the device at once, or 16 if that is more, and others wait until one is used.
#[derive(Debug)]
pub struct QueueWorker<H> {
    handler: H,
    queues: Queues,
    /// Guest RAM.
    dma: Dma,
    /// The same, with the rings of the queues.
    memory: Arc<GuestMmap>,
    failure: FailureSink,
    failed: bool,
}

impl<H: QueueHandler> QueueWorker<H> {
    /// A worker without queues.
    pub fn new(handler: H, activation: &Activation) -> Self {
        let dma = activation.dma.clone();
        Self {
            handler,
            queues: Queues::default(),
            memory: Arc::new(dma.memory().clone()),
            dma,
            failure: activation.failure.clone(),
            failed: false,
        }
    }

    fn fail(&mut self, reason: String) {
        self.failed = true;
        self.failure.report(Failure::NeedsReset { reason });
    }

    /// Shows the device guest RAM as it is now, and the rings of the queues that run.
    fn map(&mut self) -> Result<(), DeviceError> {
        let mut memory = self.dma.memory().clone();
        for running in &self.queues.0 {
            let inserted = memory.insert_region(running.shadow.region());
            memory = inserted.map_err(|e| DeviceError::new(format!("no room for a ring: {e}")))?;
        }
        self.memory = Arc::new(memory);
        Ok(())
    }

    /// Returns false if that failed, which is told.
    fn mapped(&mut self) -> bool {
        let mapped = self.map();
        if let Err(e) = &mapped {
            self.fail(e.to_string());
        }
        mapped.is_ok()
    }

    fn work(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        self.queues.find(token).map(Running::offer).transpose()?;
        // After the chains: they may lie in RAM that has only now been added.
        if self.dma.refresh() && !self.mapped() {
            return Ok(Turn::Sleep);
        }
        let before = self.queues.find(token).map_or(0, |running| running.foreign.next_avail());
        if let Err(e) = self.handler.process(token, &mut self.queues, &self.memory) {
            self.fail(e.to_string());
            return Ok(Turn::Sleep);
        }
        for running in &mut self.queues.0 {
            running.collect()?;
        }
        let Some(running) = self.queues.find(token) else { return Ok(Turn::Sleep) };
        // A device that took some of the chains and not all goes on in the next turn.
        let partly = running.pending() != 0 && running.foreign.next_avail() != before;
        Ok(if partly || running.enable_kicks()? { Turn::Again } else { Turn::Sleep })
    }

    /// Goes on with the queues other than `token` whose chains have waited until this turn made room for them.
    fn catch_up(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let due = |running: &&Running| running.is_due() && running.index() != token;
        let queues: Vec<_> = self.queues.0.iter().filter(due).map(Running::index).collect();
        for index in queues {
            if !self.failed && self.work(index)? == Turn::Again {
                self.queues.find(index).into_iter().for_each(Running::owe);
            }
        }
        let again = !self.failed && self.queues.0.iter().any(Running::is_due);
        Ok(if again { Turn::Again } else { Turn::Sleep })
    }

    /// Lets the device give back what it has of the queue. Returns true if it has nothing more.
    fn drain(&mut self, index: u16) -> Result<bool, HandlerError> {
        let Some(running) = self.queues.find(index) else { return Ok(true) };
        running.stop();
        self.handler.stop_queue(index, &mut running.foreign, &self.memory)?;
        running.collect()?;
        Ok(running.taken() == 0)
    }
}

impl<H: QueueHandler> Worker for QueueWorker<H> {
    fn sources(&self) -> Vec<Source> {
        self.handler.sources()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        match Running::new(queue) {
            Ok(running) => self.queues.0.push(running),
            Err(e) => return self.fail(e.to_string()),
        }
        self.mapped();
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        // Of a device that cannot go on, no queue is sound until its driver resets it.
        if self.failed {
            self.queues.0.retain(|running| running.index() != index);
            return Removed::Unknown;
        }
        match self.drain(index) {
            Ok(true) => {}
            Ok(false) => return Removed::Draining,
            Err(e) => {
                self.fail(e.to_string());
                return self.remove_queue(index);
            }
        }
        let Some(at) = self.queues.0.iter().position(|running| running.index() == index) else {
            return Removed::Unknown;
        };
        let running = self.queues.0.swap_remove(at);
        self.mapped();
        Removed::Queue(running.into_queue())
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        if self.failed {
            return Ok(Turn::Sleep);
        }
        let turn = self.work(token).and_then(|turn| match (turn, self.catch_up(token)?) {
            (Turn::Sleep, Turn::Sleep) => Ok(Turn::Sleep),
            _ => Ok(Turn::Again),
        });
        turn.inspect_err(|_| self.failed = true)
    }
}
