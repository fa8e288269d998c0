//! The event loop: handlers on it wait for descriptors, and any thread may run it.

mod callback;
mod cell;
mod core;
mod handle;
mod handler;
mod hosted;
#[cfg(not(all(loom, test)))]
#[allow(unsafe_code)] // see the module
mod poller;
#[cfg(all(loom, test))]
#[path = "model.rs"]
mod poller;
mod table;
pub(crate) mod thread;
mod timer;

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::Duration;

use self::callback::OnReadable;
use self::cell::{Cell, Hook};
use self::core::Core;
use self::timer::Alarm;
use crate::Panic;

pub use self::handle::LoopHandle;
pub use self::handler::{Handler, Interest, Source, Turn, WatchError};
pub use self::hosted::Hosted;
pub use self::timer::{Timer, TimerSource};

/// Handlers and the descriptors that wake them: a set that any thread may change, and that one thread at a time
/// runs. Clones are the same loop.
///
/// A handler is hosted, woken and taken back directly, whether or not the loop runs: a caller never waits for the
/// thread that runs it, only for the turn of a handler that it takes back. Each wake-up is a turn, and a handler that
/// wants another one right away gets it after all others had theirs, so that none starves another for longer than a
/// turn.
///
/// ```
/// use std::sync::Arc;
/// use ossature_bus::{Event, EventLoop};
///
/// let here = EventLoop::new()?;
/// let (end, event) = (here.clone(), Arc::new(Event::new()?));
/// let _end = here.on_readable(event.clone(), move |event| {
///     // The first call comes without a signal.
///     if event.take().is_ok_and(|count| count > 0) {
///         end.stop();
///     }
/// })?;
/// std::thread::spawn(move || event.signal());
/// here.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Panics of handlers
///
/// No panic of a handler or a timer's callback leaves its turn: the handler is taken off the loop and dropped, and all
/// others go on. To be told of a panic, host the handler through [`on_panic`](Self::on_panic).
///
/// # On a loop of another kind
///
/// The loop's descriptor is readable while turns are due. Any other loop (another `EventLoop`, tokio's, event-manager)
/// can watch it, level-triggered or edge-triggered, and call [`pass`](Self::pass) each time.
///
/// ```
/// use ossature_bus::{Event, EventLoop};
///
/// let (outer, inner) = (EventLoop::new()?, EventLoop::new()?);
/// let end = outer.clone();
/// let _hosted = inner.on_readable(Event::new()?, move |_| end.stop())?;
/// let _nested = outer.on_readable(inner, |inner| {
///     let _ = inner.pass();
/// })?;
/// outer.run()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct EventLoop {
    core: Arc<Core>,
    hook: Option<Hook>,
}

impl EventLoop {
    /// A loop without handlers. No thread runs it yet.
    pub fn new() -> io::Result<Self> {
        Ok(Self { core: Arc::new(Core::new()?), hook: None })
    }

    /// The same loop, for handlers and timers whose panics go to `hook`: those that are hosted through the returned
    /// loop, or through a clone of it.
    ///
    /// The hook is called on the thread that runs the loop, when the handler is off the loop and dropped. It replaces
    /// an earlier hook. If it panics itself, that panic ends there.
    ///
    /// ```
    /// use std::sync::mpsc::channel;
    /// use ossature_bus::{Event, EventLoop};
    ///
    /// let event_loop = EventLoop::new()?;
    /// let (tell, told) = channel();
    /// let mine = event_loop.on_panic(move |panic| {
    ///     let _ = tell.send(panic.message);
    /// });
    /// let hosted = mine.on_readable(Event::new()?, |_| panic!("out of cheese"))?;
    /// event_loop.pass()?;
    /// assert_eq!(told.try_recv(), Ok("out of cheese".to_owned()));
    /// assert!(hosted.take_back().is_none());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn on_panic(&self, hook: impl Fn(Panic) + Send + Sync + 'static) -> Self {
        Self { core: Arc::clone(&self.core), hook: Some(Arc::new(hook)) }
    }

    /// Hosts a handler, whose first turns come with the loop's next pass. Dropping what is returned takes it back.
    pub fn host<H: Handler + 'static>(&self, handler: H) -> Result<Hosted<H>, WatchError> {
        let sources = handler.sources();
        let cell = Arc::new(Cell::new(handler, self.hook.clone()));
        let mut table = self.core.table();
        let id = table.insert(cell.clone());
        let hosted = Hosted::new(cell, LoopHandle::new(Arc::clone(&self.core), id));
        for source in &sources {
            if let Err(error) = self.core.watch_new(&mut table, id, *source) {
                drop(table);
                return Err(error);
            }
            table.is_due(id, source.token);
        }
        self.core.changed(table);
        Ok(hosted)
    }

    /// Hosts a handler that calls `f` each time `file` has become readable, and once at first.
    pub fn on_readable<T, F>(&self, file: T, f: F) -> Result<Hosted<impl Handler + use<T, F>>, WatchError>
    where
        T: AsRawFd + Send + 'static,
        F: FnMut(&mut T) + Send + 'static,
    {
        self.host(OnReadable::new(file, f))
    }

    /// Calls `f` once, in a turn, when `delay` is over by the host's monotonic clock. Dropping the [`Timer`] cancels
    /// the call; `f` itself may do so as well.
    pub fn after(&self, delay: Duration, f: impl FnOnce() + Send + 'static) -> io::Result<Timer> {
        self.host(Alarm::new(delay, f)?).map(Timer::new).map_err(|error| error.source)
    }

    /// Runs the loop on this thread until [`stop`](Self::stop) is called. While another thread runs it, this one waits
    /// for its turn to do so. Fails inside of a turn of the loop.
    pub fn run(&self) -> io::Result<()> {
        self.core.run()
    }

    /// Makes the [`run`](Self::run) that is under way, or else the next one, return after its pass.
    pub fn stop(&self) {
        let mut table = self.core.table();
        table.stop = true;
        self.core.changed(table);
    }

    /// One pass without waiting for a descriptor: at most a turn for each descriptor that is ready, and one for each
    /// handler that asked for another. Returns false if there was nothing to do. While another thread runs the loop,
    /// this one waits for its turn to do so. Fails inside of a turn of the loop.
    pub fn pass(&self) -> io::Result<bool> {
        self.core.pass()
    }

    /// Returns true if `other` is the same loop.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.core, &other.core)
    }

    /// Returns true while a thread is in [`run`](Self::run) or in a [`pass`](Self::pass).
    pub fn is_running(&self) -> bool {
        self.core.is_running()
    }

    /// Returns true on the thread that is running the loop: in turns and hooks. It must not wait for a turn.
    pub fn is_running_here(&self) -> bool {
        self.core.is_running_here()
    }
}

impl AsFd for EventLoop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.core.watched().as_fd()
    }
}

impl AsRawFd for EventLoop {
    fn as_raw_fd(&self) -> RawFd {
        self.as_fd().as_raw_fd()
    }
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventLoop")
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;

#[cfg(loom)]
#[cfg(test)]
mod loom_tests;
