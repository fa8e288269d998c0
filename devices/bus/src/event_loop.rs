//! The event loop: who waits for descriptors has a handler on it, and whoever has a thread for it runs it.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::Event;

/// How many descriptors one pass looks at. The others have their turns in the next one.
const BATCH: usize = 32;

/// The number that no handler has: the loop's own wake-up event.
const NOBODY: u64 = 0;

/// An event's data are its handler's number and, in so many low bits, the token. A guest that restarts a device for ever
/// does not use up the other 48.
const TOKEN_BITS: u32 = u16::BITS;

/// A descriptor that wakes a handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// Passed to [`Handler::turn`].
    pub token: u16,
    /// The descriptor; it stays open for as long as it is watched.
    pub fd: RawFd,
    /// For what.
    pub interest: Interest,
}

/// For what a descriptor is watched. The other end's closing always counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interest {
    /// Each time it has become readable (edge-triggered).
    Readable,
    /// Each time it has become writable (edge-triggered).
    Writable,
    /// Either.
    Both,
}

/// What a handler wants after a turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Turn {
    /// To sleep until a source wakes it.
    Sleep,
    /// Another turn with the same token, after the others had theirs: its budget is used up, not its work.
    Again,
}

/// Something that does its work in turns on an [`EventLoop`].
pub trait Handler: Send {
    /// What wakes it, asked once when the loop takes it in; [`LoopHandle::watch`] adds more later.
    fn sources(&self) -> Vec<Source>;
    /// Does a bounded amount of work for one source, without waiting for anything but the host's kernel. Also
    /// called once for each of [`sources`](Self::sources) right after that, so that nothing that
    /// happened before is missed.
    fn turn(&mut self, token: u16) -> Turn;
}

/// A descriptor that cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch descriptor {fd}")]
pub struct WatchError {
    /// The descriptor.
    pub fd: RawFd,
    /// What the kernel said: `EPERM` for a file that is always ready.
    pub source: io::Error,
}

/// Handlers and the descriptors that wake them: a set that any thread may change, and that one thread at a time
/// runs. Clones are the same loop.
///
/// A handler is hosted, woken and taken back directly, whether or not the loop runs: nobody waits for the thread that
/// runs it, only for a turn of the handler that is taken back. Each wake-up is a turn, and a handler that wants
/// another one right away gets it after all others had theirs, so that none starves another for longer than a turn.
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
#[derive(Clone)]
pub struct EventLoop(Arc<Inner>);

struct Inner {
    epoll: Epoll,
    /// Ends a wait. Edge-triggered, so that nobody needs to take the count.
    wake: Event,
    table: Mutex<Table>,
    /// Held by the thread that runs the loop.
    run: Mutex<Storage>,
}

struct Table {
    /// In the order of their ids.
    slots: Vec<Slot>,
    last: u64,
    /// Turns that are due without an event.
    due: Vec<(u64, u16)>,
    /// The loop waits, or is about to.
    asleep: bool,
    stop: bool,
}

struct Slot {
    id: u64,
    handler: Arc<dyn TakeTurn>,
    fds: Vec<RawFd>,
}

/// What a pass needs to remember: storage only.
struct Storage {
    events: Vec<EpollEvent>,
    due: Vec<(u64, u16)>,
    turns: Vec<(Arc<dyn TakeTurn>, u64, u16)>,
}

/// A handler of any type; gone once it has been taken back.
trait TakeTurn: Send + Sync {
    fn take_turn(&self, token: u16) -> Turn;
}

impl<H: Handler> TakeTurn for Mutex<Option<H>> {
    fn take_turn(&self, token: u16) -> Turn {
        // A handler that has panicked has no more turns.
        let Ok(mut handler) = self.lock() else { return Turn::Sleep };
        handler.as_mut().map_or(Turn::Sleep, |handler| handler.turn(token))
    }
}

impl Table {
    fn position(&self, id: u64) -> Option<usize> {
        self.slots.binary_search_by_key(&id, |slot| slot.id).ok()
    }

    fn slot(&mut self, id: u64) -> Option<&mut Slot> {
        self.position(id).and_then(|at| self.slots.get_mut(at))
    }

    fn is_due(&mut self, id: u64, token: u16) {
        if !self.due.contains(&(id, token)) {
            self.due.push((id, token));
        }
    }
}

impl Inner {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the loop see what has been changed in the table.
    fn changed(&self, mut table: MutexGuard<'_, Table>) {
        let asleep = std::mem::take(&mut table.asleep);
        drop(table);
        if asleep {
            // An eventfd whose count is full wakes as well.
            let _ = self.wake.signal();
        }
    }

    /// Has the kernel watch a descriptor for a handler.
    fn watch(
        &self,
        table: &mut Table,
        id: u64,
        source: Source,
        operation: ControlOperation,
    ) -> Result<(), WatchError> {
        let interest = match source.interest {
            Interest::Readable => EventSet::IN,
            Interest::Writable => EventSet::OUT,
            Interest::Both => EventSet::IN | EventSet::OUT,
        };
        let data = id << TOKEN_BITS | u64::from(source.token);
        let event = EpollEvent::new(interest | EventSet::EDGE_TRIGGERED, data);
        self.epoll
            .ctl(operation, source.fd, event)
            .map_err(|error| WatchError { fd: source.fd, source: error })?;
        if let Some(slot) = table.slot(id).filter(|slot| !slot.fds.contains(&source.fd)) {
            slot.fds.push(source.fd);
        }
        Ok(())
    }

    fn forget(&self, fd: RawFd) {
        // It may have been closed before.
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }

    fn remove(&self, id: u64) {
        let mut table = self.table();
        let Some(at) = table.position(id) else { return };
        let slot = table.slots.remove(at);
        table.due.retain(|(other, _)| *other != id);
        for fd in slot.fds {
            self.forget(fd);
        }
    }

    fn pass(&self, storage: &mut Storage, wait: bool) -> io::Result<bool> {
        let wait = {
            let mut table = self.table();
            std::mem::swap(&mut storage.due, &mut table.due);
            table.asleep = wait && storage.due.is_empty() && !table.stop;
            table.asleep
        };
        let ready = match self.epoll.wait(if wait { -1 } else { 0 }, &mut storage.events) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => 0,
            ready => ready?,
        };
        let events = storage.events.iter().take(ready).map(|event| {
            let data = event.data();
            (data >> TOKEN_BITS, data as u16)
        });
        {
            let mut table = self.table();
            table.asleep = false;
            for (id, token) in events.chain(storage.due.drain(..)) {
                if let Some(slot) = table.slot(id) {
                    storage.turns.push((slot.handler.clone(), id, token));
                }
            }
        }
        let busy = ready > 0 || !storage.turns.is_empty();
        for (handler, id, token) in storage.turns.drain(..) {
            if handler.take_turn(token) == Turn::Again {
                self.table().is_due(id, token);
            }
        }
        Ok(busy)
    }
}

impl EventLoop {
    /// A loop without handlers. Nobody runs it yet.
    pub fn new() -> io::Result<Self> {
        let (epoll, wake) = (Epoll::new()?, Event::new()?);
        let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, NOBODY << TOKEN_BITS);
        epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), event)?;
        let table = Table { slots: Vec::new(), last: NOBODY, due: Vec::new(), asleep: false, stop: false };
        let storage =
            Storage { events: vec![EpollEvent::default(); BATCH], due: Vec::new(), turns: Vec::new() };
        Ok(Self(Arc::new(Inner { epoll, wake, table: Mutex::new(table), run: Mutex::new(storage) })))
    }

    /// Takes a handler in, whose first turns come with the loop's next pass. Dropping what is returned takes it
    /// back.
    pub fn host<H: Handler + 'static>(&self, handler: H) -> Result<Hosted<H>, WatchError> {
        let sources = handler.sources();
        let handler = Arc::new(Mutex::new(Some(handler)));
        let mut table = self.0.table();
        table.last += 1;
        let id = table.last;
        table.slots.push(Slot { id, handler: handler.clone(), fds: Vec::with_capacity(sources.len()) });
        let hosted = Hosted { handler, handle: LoopHandle { inner: Arc::clone(&self.0), id } };
        for source in &sources {
            if let Err(error) = self.0.watch(&mut table, id, *source, ControlOperation::Add) {
                drop(table);
                return Err(error);
            }
            table.is_due(id, source.token);
        }
        self.0.changed(table);
        Ok(hosted)
    }

    /// Hosts a handler that calls `f` each time `file` has become readable, and once at first.
    pub fn on_readable<T: AsRawFd + Send + 'static>(
        &self,
        file: T,
        f: impl FnMut(&mut T) + Send + 'static,
    ) -> Result<Hosted<impl Handler>, WatchError> {
        self.host(OnReadable { file, f })
    }

    /// Runs the loop on this thread until somebody calls [`stop`](Self::stop). While another thread runs it, this
    /// one waits for its turn to do so.
    pub fn run(&self) -> io::Result<()> {
        let mut storage = self.0.run.lock().unwrap_or_else(PoisonError::into_inner);
        while !std::mem::take(&mut self.0.table().stop) {
            self.0.pass(&mut storage, true)?;
        }
        Ok(())
    }

    /// Makes the [`run`](Self::run) that is under way, or else the next one, return after its pass.
    pub fn stop(&self) {
        let mut table = self.0.table();
        table.stop = true;
        self.0.changed(table);
    }

    /// One pass without waiting: at most a turn for each descriptor that is ready, and one for each handler that
    /// asked for another. False where there was nothing to do.
    pub fn pass(&self) -> io::Result<bool> {
        let mut storage = self.0.run.lock().unwrap_or_else(PoisonError::into_inner);
        self.0.pass(&mut storage, false)
    }
}

impl std::fmt::Debug for EventLoop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("EventLoop")
    }
}

/// See [`EventLoop::on_readable`].
struct OnReadable<T, F> {
    file: T,
    f: F,
}

impl<T: AsRawFd + Send, F: FnMut(&mut T) + Send> Handler for OnReadable<T, F> {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.file.as_raw_fd(), interest: Interest::Readable }]
    }

    fn turn(&mut self, _: u16) -> Turn {
        (self.f)(&mut self.file);
        Turn::Sleep
    }
}

/// A handler on its loop; dropping this takes the handler back and drops it.
pub struct Hosted<H: Handler> {
    handler: Arc<Mutex<Option<H>>>,
    handle: LoopHandle,
}

impl<H: Handler> Hosted<H> {
    /// Takes the handler back, once the turn that it may be taking is over; it will have no other. `None` if it
    /// has panicked. Not to be called inside of one of its own turns.
    pub fn take_back(self) -> Option<H> {
        self.take()
    }

    fn take(&self) -> Option<H> {
        self.handle.inner.remove(self.handle.id);
        self.handler.lock().ok()?.take()
    }

    /// How the handler is reached from elsewhere.
    pub fn handle(&self) -> &LoopHandle {
        &self.handle
    }
}

impl<H: Handler> Drop for Hosted<H> {
    fn drop(&mut self) {
        drop(self.take());
    }
}

impl<H: Handler> std::fmt::Debug for Hosted<H> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Hosted({})", self.handle.id)
    }
}

/// Reaches a handler on its loop from any thread, also from inside its turns. Does nothing once the handler has been
/// taken back.
#[derive(Clone)]
pub struct LoopHandle {
    inner: Arc<Inner>,
    id: u64,
}

impl LoopHandle {
    /// Gives the handler a turn.
    pub fn wake(&self, token: u16) {
        let mut table = self.inner.table();
        if table.position(self.id).is_some() {
            table.is_due(self.id, token);
            self.inner.changed(table);
        }
    }

    /// Watches one more descriptor, or one that is watched already for something else. It wakes also for what has
    /// happened before.
    pub fn watch(&self, source: Source) -> Result<(), WatchError> {
        let mut table = self.inner.table();
        let Some(slot) = table.slot(self.id) else { return Ok(()) };
        let known = slot.fds.contains(&source.fd);
        let operation = if known { ControlOperation::Modify } else { ControlOperation::Add };
        self.inner.watch(&mut table, self.id, source, operation)
    }

    /// Watches a descriptor no longer. Needed before it is closed.
    pub fn forget(&self, fd: RawFd) {
        let mut table = self.inner.table();
        if let Some(slot) = table.slot(self.id) {
            slot.fds.retain(|other| *other != fd);
            self.inner.forget(fd);
        }
    }
}

impl std::fmt::Debug for LoopHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "LoopHandle({})", self.id)
    }
}

/// A thread that runs an [`EventLoop`] until this is dropped.
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
        let join = thread::Builder::new().name(name.to_owned()).spawn(move || {
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
            // A handler that panicked has said so itself.
            let _ = join.join();
        }
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
