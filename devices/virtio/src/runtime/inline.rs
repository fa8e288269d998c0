//! Workers on the caller's thread, when the caller says so: for tests, and for VMMs with a loop of their own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::engine::{Engine, WorkerId};
use crate::{QueueBroken, Runtime, RuntimeError, Worker, WorkerHandle};

/// A runtime without threads: workers take their turns inside [`pump`](Self::pump).
#[derive(Clone)]
pub struct Inline(Arc<Mutex<Engine>>);

impl Inline {
    /// A runtime without workers.
    pub fn new() -> Result<Self, RuntimeError> {
        Ok(Self(Arc::new(Mutex::new(Engine::new()?))))
    }

    fn engine(&self) -> MutexGuard<'_, Engine> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives every worker its turns until none has anything left to do. Never waits for a descriptor.
    pub fn pump(&self) -> Result<(), RuntimeError> {
        while self.pass()? {}
        Ok(())
    }

    /// One pass of [`pump`](Self::pump): at most a turn for each source. False where there was nothing to do.
    pub fn pass(&self) -> Result<bool, RuntimeError> {
        self.engine().run(false)
    }
}

impl Runtime for Inline {
    fn spawn(
        &self,
        _: &str,
        worker: Box<dyn Worker>,
        broken: Box<dyn FnOnce(QueueBroken) + Send>,
    ) -> Result<Box<dyn WorkerHandle>, RuntimeError> {
        let id = self.engine().add(worker, broken)?;
        Ok(Box::new(Handle { runtime: self.clone(), id }))
    }
}

struct Handle {
    runtime: Inline,
    id: WorkerId,
}

impl WorkerHandle for Handle {
    fn stop(self: Box<Self>) -> Option<Box<dyn Worker>> {
        self.runtime.engine().remove(self.id)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let worker = self.runtime.engine().remove(self.id);
        drop(worker);
    }
}
