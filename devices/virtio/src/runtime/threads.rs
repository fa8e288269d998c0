//! Runtimes with threads: one that all workers share, or one for each.

use std::io;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

use ossature_bus::Event;

use super::engine::{Broken, Engine, WorkerId};
use crate::{QueueBroken, Runtime, RuntimeError, Worker, WorkerHandle};

/// One thread that hosts many workers. Each wake-up is a turn, and a worker that wants another one right
/// away gets it after all others had theirs, so that no worker starves another for longer than a turn.
///
/// Starting and stopping a worker waits for the turn that is running; it must not be done from inside one.
#[derive(Debug)]
pub struct SharedLoop(Arc<Thread>);

impl SharedLoop {
    /// Starts the thread; `name` is what the host's tools show (15 bytes of it).
    pub fn new(name: &str) -> Result<Self, RuntimeError> {
        Thread::start(name).map(Self)
    }
}

impl Runtime for SharedLoop {
    fn spawn(
        &self,
        _: &str,
        worker: Box<dyn Worker>,
        broken: Box<dyn FnOnce(QueueBroken) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        self.0.host(worker, broken)
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
        broken: Box<dyn FnOnce(QueueBroken) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        Thread::start(name)?.host(worker, broken)
    }
}

enum Command {
    Add { worker: Box<dyn Worker>, broken: Broken, reply: SyncSender<Result<WorkerId, RuntimeError>> },
    Remove { id: WorkerId, reply: SyncSender<Option<Box<dyn Worker>>> },
    Quit,
}

/// A thread that runs an engine until its last user is gone.
#[derive(Debug)]
struct Thread {
    commands: Sender<Command>,
    wake: Arc<Event>,
    join: Mutex<Option<JoinHandle<()>>>,
}

impl Thread {
    fn start(name: &str) -> Result<Arc<Self>, RuntimeError> {
        let failed =
            |e: io::Error| RuntimeError { reason: format!("no thread for {name}: {e}"), source: Some(e) };
        let wake = Arc::new(Event::new().map_err(failed)?);
        let mut engine = Engine::new()?;
        engine.wake_by(&wake)?;
        let (commands, inbox) = channel();
        let join = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(engine, &inbox))
            .map_err(failed)?;
        Ok(Arc::new(Self { commands, wake, join: Mutex::new(Some(join)) }))
    }

    /// Hands a command to the thread; it is lost where the thread is gone.
    fn send(&self, command: Command) {
        if self.commands.send(command).is_ok() {
            let _ = self.wake.signal();
        }
    }

    fn host(
        self: &Arc<Self>,
        worker: Box<dyn Worker>,
        broken: Broken,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Add { worker, broken, reply });
        let gone = || RuntimeError { reason: "the worker thread is gone".to_owned(), source: None };
        let id = answer.recv().map_err(|_| gone())??;
        Ok(Box::new(Handle { thread: self.clone(), id: Some(id) }))
    }

    fn remove(&self, id: WorkerId) -> Option<Box<dyn Worker>> {
        let (reply, answer) = sync_channel(1);
        self.send(Command::Remove { id, reply });
        answer.recv().ok().flatten()
    }
}

impl Drop for Thread {
    fn drop(&mut self) {
        self.send(Command::Quit);
        let join = self.join.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(join) = join.filter(|join| join.thread().id() != thread::current().id()) {
            // A worker that panicked has said so itself.
            let _ = join.join();
        }
    }
}

fn run(mut engine: Engine, inbox: &Receiver<Command>) {
    loop {
        for command in inbox.try_iter() {
            match command {
                // Who asked and is gone does not need the answer.
                Command::Add { worker, broken, reply } => drop(reply.send(engine.add(worker, broken))),
                Command::Remove { id, reply } => drop(reply.send(engine.remove(id))),
                Command::Quit => return,
            }
        }
        if let Err(e) = engine.run(true) {
            log::error!("a worker thread ends: {e}");
            return;
        }
    }
}

struct Handle {
    thread: Arc<Thread>,
    id: Option<WorkerId>,
}

impl WorkerHandle for Handle {
    fn stop(mut self: Box<Self>) -> Option<Box<dyn Worker>> {
        self.id.take().and_then(|id| self.thread.remove(id))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        drop(self.id.take().and_then(|id| self.thread.remove(id)));
    }
}
