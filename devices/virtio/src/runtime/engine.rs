//! The event loop behind every runtime: workers, their descriptors, and turns that are fair.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use event_manager::{
    EventManager, EventOps, EventSet, Events, MutEventSubscriber, SubscriberId, SubscriberOps,
};
use ossature_bus::Event;

use crate::{Interest, QueueBroken, RuntimeError, Source, Turn, Worker};

/// How a worker is known to its engine.
pub(super) type WorkerId = SubscriberId;

/// What to call once if a worker's turn fails.
pub(super) type Broken = Box<dyn FnOnce(QueueBroken) + Send>;

/// Several workers on one epoll descriptor.
pub(super) struct Engine {
    manager: EventManager<Subscriber>,
    workers: Vec<WorkerId>,
    /// Set when some worker has another turn to take.
    again: Arc<AtomicBool>,
    /// The turns of this pass: storage only.
    turns: Vec<(WorkerId, u32)>,
}

enum Subscriber {
    /// Only ends a wait: edge-triggered, so that nobody needs to take the count.
    Wake {
        /// Kept open as long as it is watched.
        _event: Arc<Event>,
    },
    Worker(Hosted),
}

struct Hosted {
    worker: Box<dyn Worker>,
    /// Taken when a turn fails: from then on there are no turns.
    broken: Option<Broken>,
    /// Tokens that have another turn to take.
    tokens: Vec<u32>,
    again: Arc<AtomicBool>,
}

impl Hosted {
    fn turn(&mut self, token: u32) {
        if self.broken.is_none() {
            return;
        }
        match self.worker.turn(token) {
            Ok(Turn::Sleep) => {}
            Ok(Turn::Again) => self.later(token),
            Err(why) => {
                self.tokens.clear();
                if let Some(broken) = self.broken.take() {
                    broken(why);
                }
            }
        }
    }

    fn later(&mut self, token: u32) {
        if !self.tokens.contains(&token) {
            self.tokens.push(token);
        }
        self.again.store(true, Ordering::Relaxed);
    }
}

impl MutEventSubscriber for Subscriber {
    fn process(&mut self, events: Events, _: &mut EventOps) {
        if let Self::Worker(hosted) = self {
            hosted.turn(events.data());
        }
    }

    /// Descriptors are added after, where a failure can be told.
    fn init(&mut self, _: &mut EventOps) {}
}

fn failed(reason: impl Into<String>, error: &event_manager::Error) -> RuntimeError {
    let source = match error {
        event_manager::Error::Epoll(errno) => Some(std::io::Error::from_raw_os_error(errno.errno())),
        _ => None,
    };
    RuntimeError { reason: format!("{}: {error}", reason.into()), source }
}

impl Engine {
    pub(super) fn new() -> Result<Self, RuntimeError> {
        let manager = EventManager::new().map_err(|e| failed("no event loop", &e))?;
        Ok(Self { manager, workers: Vec::new(), again: Arc::default(), turns: Vec::new() })
    }

    /// Lets `event` end a wait of [`run`](Self::run).
    pub(super) fn wake_by(&mut self, event: &Arc<Event>) -> Result<(), RuntimeError> {
        let id = self.manager.add_subscriber(Subscriber::Wake { _event: event.clone() });
        let events = Events::new(&**event, EventSet::IN | EventSet::EDGE_TRIGGERED);
        let added = self.manager.event_ops(id).and_then(|mut ops| ops.add(events));
        added.map_err(|e| failed("no wake-up event", &e))
    }

    /// Hosts `worker`; its first turns come with the next pass.
    pub(super) fn add(&mut self, worker: Box<dyn Worker>, broken: Broken) -> Result<WorkerId, RuntimeError> {
        let sources = worker.sources();
        let tokens = sources.iter().map(|source| source.token).collect();
        let hosted = Hosted { worker, broken: Some(broken), tokens, again: self.again.clone() };
        let id = self.manager.add_subscriber(Subscriber::Worker(hosted));
        for Source { token, fd, interest } in sources {
            let interest = match interest {
                Interest::Readable => EventSet::IN,
                Interest::Writable => EventSet::OUT,
                Interest::Both => EventSet::IN | EventSet::OUT,
            };
            let events = Events::with_data_raw(fd, token, interest | EventSet::EDGE_TRIGGERED);
            if let Err(e) = self.manager.event_ops(id).and_then(|mut ops| ops.add(events)) {
                let _ = self.manager.remove_subscriber(id);
                return Err(failed(format!("cannot watch descriptor {fd}"), &e));
            }
        }
        self.workers.push(id);
        self.again.store(true, Ordering::Relaxed);
        Ok(id)
    }

    /// Takes a worker back.
    pub(super) fn remove(&mut self, id: WorkerId) -> Option<Box<dyn Worker>> {
        self.workers.retain(|other| *other != id);
        match self.manager.remove_subscriber(id).ok()? {
            Subscriber::Worker(hosted) => Some(hosted.worker),
            Subscriber::Wake { .. } => None,
        }
    }

    /// One pass: a turn for each descriptor that is ready, then one for each that asked for another. Waits
    /// only where `wait` says so and no turn is left over. False where there was nothing to do.
    pub(super) fn run(&mut self, wait: bool) -> Result<bool, RuntimeError> {
        let left = self.again.swap(false, Ordering::Relaxed);
        let mut turns = std::mem::take(&mut self.turns);
        if left {
            for &id in &self.workers {
                if let Ok(Subscriber::Worker(hosted)) = self.manager.subscriber_mut(id) {
                    turns.extend(hosted.tokens.drain(..).map(|token| (id, token)));
                }
            }
        }
        let timeout = if wait && turns.is_empty() { -1 } else { 0 };
        let ready =
            self.manager.run_with_timeout(timeout).map_err(|e| failed("the event loop failed", &e))?;
        let busy = ready > 0 || !turns.is_empty();
        for (id, token) in turns.drain(..) {
            if let Ok(Subscriber::Worker(hosted)) = self.manager.subscriber_mut(id) {
                hosted.turn(token);
            }
        }
        self.turns = turns;
        Ok(busy)
    }
}
