//! A worker on an event loop: its turns, its failures, and how its queues come and go between turns.
//!
//! The worker lies under a lock that a turn holds, and that others hold only to hand it a queue or take one. A queue of
//! which something is in flight leaves in turns, on the thread that runs the loop; the thread that stops it waits for
//! that. Where the waiting thread is the one that runs the loop, or no thread runs it and the worker has had no turn for a
//! while, the waiting thread takes the worker's turns, and those of nothing else on the loop. So a loop in a foreign one
//! keeps its thread as long as that takes its passes, and a thread that waits for the waiting one cannot block it.

use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ossature_bus::{DeviceError, EventLoop, Handler, Hosted, Interest, LoopThread, Panic, Source, Turn};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use crate::{Failure, Removed, VirtQueue, Worker, WorkerHandle};

/// How long a thread waits for a turn on a loop before it looks whether there will be one.
const STILL_RUN: Duration = Duration::from_millis(10);

/// What to call once if a worker's turn fails.
pub(super) type Failed = Box<dyn FnOnce(Failure) + Send>;

/// A failure, and the one to tell.
type News = Option<(Failed, Failure)>;

/// The worker, as the loop and its owner share it.
struct Cell {
    state: Mutex<State>,
    /// A queue has left, or the worker has failed.
    left: Condvar,
}

struct State {
    /// None after a panic.
    worker: Option<Box<dyn Worker>>,
    /// Taken when the worker fails: from then on there are no turns.
    failed: Option<Failed>,
    /// The descriptors of its queues' doorbells.
    queues: Vec<(u16, RawFd)>,
    /// Queues that a thread waits for.
    leaving: Vec<(u16, Leaving)>,
    /// Turns on the loop so far.
    turns: u64,
}

#[allow(clippy::large_enum_variant)] // as with `Removed`
enum Leaving {
    /// It is asked for after each turn.
    Awaited,
    /// It is here, or lost.
    Gone(Option<VirtQueue>),
}

impl State {
    /// Calls the worker, if it has not failed.
    fn call<R>(&mut self, news: &mut News, f: impl FnOnce(&mut dyn Worker) -> R) -> Option<R> {
        self.failed.as_ref()?;
        match Panic::catch(|| self.worker.as_mut().map(|worker| f(&mut **worker))) {
            Ok(result) => result,
            Err(Panic { message, .. }) => {
                let worker = self.worker.take();
                // What it says while it is dropped does not matter any more.
                let _ = Panic::catch(|| drop(worker));
                self.fail(news, Failure::Panicked { message });
                None
            }
        }
    }

    fn fail(&mut self, news: &mut News, failure: Failure) {
        if let Some(failed) = self.failed.take() {
            *news = Some((failed, failure));
        }
    }

    fn turn(&mut self, token: u16, news: &mut News) -> Turn {
        match self.call(news, |worker| worker.turn(token)) {
            Some(Ok(turn)) => turn,
            Some(Err(why)) => {
                self.fail(news, Failure::NeedsReset { reason: why.to_string() });
                Turn::Sleep
            }
            None => Turn::Sleep,
        }
    }

    /// Asks the worker for a queue, which is lost once the worker has failed and does not have it at hand.
    fn ask(&mut self, index: u16, news: &mut News) -> Leaving {
        let broken = self.failed.is_none();
        let answer = match (&mut self.worker, broken) {
            // Its turns are over, its queues may be sound.
            (Some(worker), true) => {
                Some(Panic::catch(|| worker.remove_queue(index)).unwrap_or(Removed::Unknown))
            }
            _ => self.call(news, |worker| worker.remove_queue(index)),
        };
        match answer {
            Some(Removed::Queue(queue)) => Leaving::Gone(Some(queue)),
            Some(Removed::Draining) if self.failed.is_some() => Leaving::Awaited,
            _ => Leaving::Gone(None),
        }
    }

    /// Asks for all queues that are awaited. Returns true if one of them has left.
    fn ask_all(&mut self, news: &mut News) -> bool {
        let mut any = false;
        for at in 0..self.leaving.len() {
            let Some((index, Leaving::Awaited)) = self.leaving.get(at) else { continue };
            let answer = self.ask(*index, news);
            any |= matches!(answer, Leaving::Gone(_));
            if let Some((_, leaving)) = self.leaving.get_mut(at) {
                *leaving = answer;
            }
        }
        any
    }

    /// The queue that was awaited, or none if it is lost, once it has left.
    fn take_left(&mut self, index: u16) -> Option<Option<VirtQueue>> {
        let lost = self.failed.is_none();
        let Some(at) = self.leaving.iter().position(|(other, _)| *other == index) else { return Some(None) };
        match self.leaving.get(at) {
            Some((_, Leaving::Awaited)) if !lost => None,
            _ => match self.leaving.swap_remove(at).1 {
                Leaving::Gone(queue) => Some(queue),
                Leaving::Awaited => Some(None),
            },
        }
    }
}

impl Cell {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Unlocks, and tells of a failure after that.
    fn release(&self, state: MutexGuard<'_, State>, news: News) {
        drop(state);
        if let Some((failed, failure)) = news {
            self.left.notify_all();
            failed(failure);
        }
    }

    fn turn(&self, token: u16) -> Turn {
        let (mut state, mut news) = (self.state(), None);
        state.turns = state.turns.wrapping_add(1);
        let turn = state.turn(token, &mut news);
        if !state.leaving.is_empty() && state.ask_all(&mut news) {
            self.left.notify_all();
        }
        self.release(state, news);
        turn
    }

    /// Waits until turns on another thread have made the queue leave. Returns none if it has not left and the worker has
    /// had no turn since it was `woken`, although that was some time ago and no thread is running the loop.
    fn wait(&self, index: u16, woken: impl Fn(), is_running: impl Fn() -> bool) -> Option<Option<VirtQueue>> {
        let mut seen = self.state().turns;
        woken();
        let mut state = self.state();
        loop {
            if let Some(left) = state.take_left(index) {
                return Some(left);
            }
            let waited = self.left.wait_timeout(state, STILL_RUN).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if !waited.1.timed_out() {
                continue;
            }
            let turns = state.turns;
            drop(state);
            if !is_running() {
                if turns == seen {
                    return None;
                }
                // It was run a while ago. A turn will tell whether it still is.
                seen = turns;
                woken();
            }
            state = self.state();
        }
    }
}

/// The worker, as the loop has it.
struct OnLoop {
    cell: Arc<Cell>,
    sources: Vec<Source>,
}

impl Handler for OnLoop {
    fn sources(&self) -> Vec<Source> {
        self.sources.clone()
    }

    fn turn(&mut self, token: u16) -> Turn {
        self.cell.turn(token)
    }
}

/// Stops the worker when dropped, and then the thread that was only there for it.
// Dropped in this order: the loop watches no descriptor that is closed.
struct Handle {
    hosted: Hosted<OnLoop>,
    cell: Owned,
    sources: Vec<Source>,
    event_loop: EventLoop,
    thread: Option<Arc<LoopThread>>,
}

pub(super) fn host(
    event_loop: &EventLoop,
    thread: Option<&Arc<LoopThread>>,
    worker: Box<dyn Worker>,
    failed: Failed,
) -> Result<Box<dyn WorkerHandle>, DeviceError> {
    let sources = worker.sources();
    let state = State {
        worker: Some(worker),
        failed: Some(failed),
        queues: Vec::new(),
        leaving: Vec::new(),
        turns: 0,
    };
    let cell = Arc::new(Cell { state: Mutex::new(state), left: Condvar::new() });
    let hosted = event_loop
        .host(OnLoop { cell: cell.clone(), sources: sources.clone() })
        .map_err(|e| DeviceError::new(e.to_string()).with_source(e.source))?;
    let cell = Owned(cell);
    Ok(Box::new(Handle { hosted, cell, sources, event_loop: event_loop.clone(), thread: thread.cloned() }))
}

impl WorkerHandle for Handle {
    fn add_queue(&self, queue: VirtQueue) -> Result<(), DeviceError> {
        let source =
            Source { token: queue.index(), fd: queue.doorbell().as_raw_fd(), interest: Interest::Readable };
        let (mut state, mut news) = (self.cell.state(), None);
        let added = state.call(&mut news, |worker| worker.add_queue(queue));
        if added.is_some() {
            state.queues.push((source.token, source.fd));
        }
        self.cell.release(state, news);
        if added.is_none() {
            return Ok(());
        }
        if let Err(e) = self.hosted.handle().watch(source) {
            drop(self.remove_queue(source.token));
            return Err(DeviceError::new(e.to_string()).with_source(e.source));
        }
        self.hosted.handle().wake(source.token);
        Ok(())
    }

    fn remove_queue(&self, index: u16) -> Option<VirtQueue> {
        let (mut state, mut news) = (self.cell.state(), None);
        let asked = state.ask(index, &mut news);
        let fd = state.queues.iter().position(|(other, _)| *other == index);
        let fd = fd.map(|at| state.queues.swap_remove(at).1);
        self.cell.release(state, news);
        if let Some(fd) = fd {
            self.hosted.handle().forget(fd);
        }
        match asked {
            Leaving::Gone(queue) => queue,
            Leaving::Awaited => {
                self.cell.state().leaving.push((index, Leaving::Awaited));
                let left = if self.event_loop.is_running_here() { None } else { self.wait(index) };
                left.unwrap_or_else(|| self.drain(index))
            }
        }
    }
}

impl Handle {
    /// Lets the loop make the queue leave. Returns none if the loop is not run.
    fn wait(&self, index: u16) -> Option<Option<VirtQueue>> {
        let wake = || self.hosted.handle().wake(index);
        self.cell.wait(index, wake, || self.thread.is_some() || self.event_loop.is_running())
    }

    /// Takes the worker's turns here until the queue has left.
    fn drain(&self, index: u16) -> Option<VirtQueue> {
        // If its descriptors cannot be watched, the queue is lost.
        let epoll = self.watch_sources();
        let mut ready = [EpollEvent::default(); 8];
        loop {
            let mut again = false;
            let (mut state, mut news) = (self.cell.state(), None);
            for token in self.sources.iter().map(|source| source.token).chain([index]) {
                again |= state.turn(token, &mut news) == Turn::Again;
            }
            if state.ask_all(&mut news) {
                self.cell.left.notify_all();
            }
            let left = state.take_left(index);
            if left.is_none() && epoll.is_err() {
                state.leaving.retain(|(other, _)| *other != index);
            }
            self.cell.release(state, news);
            match (left, &epoll) {
                (Some(queue), _) => return queue,
                (None, Err(_)) => return None,
                // The loop may be run again by now, and its turns take the events that this one waits for.
                (None, Ok(epoll)) => {
                    let limit = if again { 0 } else { STILL_RUN.as_millis() as i32 };
                    // A signal ends the wait early, which does no harm.
                    let _ = epoll.wait(limit, &mut ready);
                }
            }
        }
    }

    fn watch_sources(&self) -> io::Result<Epoll> {
        let epoll = Epoll::new()?;
        for source in &self.sources {
            let events = match source.interest {
                Interest::Readable => EventSet::IN,
                Interest::Writable => EventSet::OUT,
                Interest::Both => EventSet::IN | EventSet::OUT,
            };
            let event = EpollEvent::new(events | EventSet::EDGE_TRIGGERED, source.token.into());
            epoll.ctl(ControlOperation::Add, source.fd, event)?;
        }
        Ok(epoll)
    }
}

/// Drops the worker, which gets no more turns.
struct Owned(Arc<Cell>);

impl Deref for Owned {
    type Target = Cell;

    fn deref(&self) -> &Cell {
        &self.0
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        let worker = self.0.state().worker.take();
        let _ = Panic::catch(|| drop(worker));
    }
}
