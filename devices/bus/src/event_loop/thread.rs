//! A thread that does nothing but run a loop.

use std::io;
use std::thread::{self, JoinHandle};

use super::EventLoop;
use crate::sigmask::BlockedSignals;

/// Starts a thread that takes none of the signals that others send to the process, such as SIGTERM: they are for the
/// program's own threads. `name` is what the host's tools show (15 bytes of it).
pub fn spawn_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    // Inherited by the thread.
    let _blocked = BlockedSignals::new();
    thread::Builder::new().name(name.to_owned()).spawn(work)
}

/// A thread that runs an [`EventLoop`] until this is dropped. Dropped on the thread itself, it ends the loop after the
/// pass that is under way.
///
/// The thread takes no signals, as one of [`spawn_thread`] takes none.
#[derive(Debug)]
pub struct LoopThread {
    event_loop: EventLoop,
    join: Option<JoinHandle<()>>,
}

impl LoopThread {
    /// Starts the thread; `name` is what the host's tools show (15 bytes of it).
    pub fn start(name: &str) -> io::Result<Self> {
        let event_loop = EventLoop::new()?;
        let here = event_loop.clone();
        let join = spawn_thread(name, move || {
            // epoll_wait(2) fails only with wrong arguments.
            let _ = here.run();
        })?;
        Ok(Self { event_loop, join: Some(join) })
    }

    /// Its loop.
    pub fn event_loop(&self) -> &EventLoop {
        &self.event_loop
    }
}

impl Drop for LoopThread {
    fn drop(&mut self) {
        self.event_loop.stop();
        if let Some(join) = self.join.take().filter(|join| join.thread().id() != thread::current().id()) {
            // No panic of a handler ends it.
            let _ = join.join();
        }
    }
}
