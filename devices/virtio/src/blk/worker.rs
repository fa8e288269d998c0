//! A queue's data plane: pops requests, has them carried out, publishes a batch at a time.

use std::sync::Arc;

use ossature_block::{Disk, Engine};
use ossature_bus::{EventSink, Throttle};
use std::os::fd::AsRawFd;

use super::DiskId;
use super::counters::Counters;
use super::held::OnHostError;
use super::request::{Begun, Context, Done, Kind, Negotiated, data_len};
use super::shared::Shared;
use crate::{Chain, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// Requests that a turn serves at most.
pub(super) const TURN_REQUESTS: u64 = 64;
/// Bytes after which a turn takes no further request: a batch is answered only when it ends, and other
/// devices wait for it.
pub(super) const TURN_BYTES: u64 = 4 << 20;
/// What a request counts for beside its bytes.
const REQUEST: u64 = TURN_BYTES / TURN_REQUESTS;

pub(super) struct BlkWorker<D: Disk> {
    queue: Option<VirtQueue>,
    /// Takes nothing more from the queue, which is to be given back.
    leaving: bool,
    engine: D::Engine,
    in_flight: InFlight,
    /// To be tried again in the next turn: they failed on the host before the queue stopped.
    again: Vec<Chain>,
    /// To be tried again when the queue has stopped and started: they have failed on the host. Nothing more is taken.
    held: Vec<Chain>,
    throttle: Option<Throttle>,
    parts: Parts<D>,
    /// Of the first source that is no doorbell.
    first_token: u16,
}

/// What a [`Context`] borrows.
pub(super) struct Parts<D> {
    pub shared: Arc<Shared<D>>,
    pub id: DiskId,
    pub counters: Arc<Counters>,
    pub events: EventSink,
    pub negotiated: Negotiated,
    pub on_error: OnHostError,
}

/// Chains of which the engine has the requests, by their heads, which the queue hands out once at a time.
#[derive(Default)]
struct InFlight(Vec<Option<(Chain, Kind)>>);

impl InFlight {
    #[cold]
    #[inline(never)]
    fn put(&mut self, chain: Chain, kind: Kind) {
        let at = usize::from(chain.head());
        if self.0.len() <= at {
            self.0.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.0.get_mut(at) {
            *slot = Some((chain, kind));
        }
    }

    fn take(&mut self, token: u64) -> Option<(Chain, Kind)> {
        self.0.get_mut(usize::try_from(token).ok()?)?.take()
    }
}

impl<D> Parts<D> {
    #[inline]
    fn context(&self) -> Context<'_, D> {
        let Self { shared, id, counters, events, negotiated, on_error } = self;
        Context { shared, id, counters, events, negotiated: *negotiated, on_error: *on_error }
    }
}

impl<D: Disk> BlkWorker<D> {
    pub(super) fn new(
        engine: D::Engine,
        throttle: Option<Throttle>,
        parts: Parts<D>,
        first_token: u16,
    ) -> Self {
        let (queue, in_flight) = (None, InFlight::default());
        let (again, held) = (Vec::new(), Vec::new());
        Self { queue, leaving: false, engine, in_flight, again, held, throttle, parts, first_token }
    }
}

/// Answers what the engine has finished.
#[inline(never)]
fn reap<D: Disk>(
    engine: &mut D::Engine,
    in_flight: &mut InFlight,
    held: &mut Vec<Chain>,
    queue: &mut VirtQueue,
    context: &Context<'_, D>,
) -> Result<(), QueueBroken> {
    // No more than were in flight: nothing is submitted meanwhile.
    while let Some(completion) = engine.reap() {
        let Some((chain, kind)) = in_flight.take(completion.token) else { continue };
        match context.finish(queue.dma(), &chain, kind, completion.finished) {
            Some(done) => queue.complete(chain, done.written)?,
            None => hold(held, chain),
        }
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn hold(held: &mut Vec<Chain>, chain: Chain) {
    held.push(chain);
}

/// Begins again with what had failed on the host; returns what that counts for in a turn.
#[cold]
#[inline(never)]
fn try_again<D: Disk>(
    engine: &mut D::Engine,
    in_flight: &mut InFlight,
    again: &mut Vec<Chain>,
    held: &mut Vec<Chain>,
    queue: &mut VirtQueue,
    context: &Context<'_, D>,
) -> Result<u64, QueueBroken> {
    let mut work = 0;
    while work < TURN_BYTES
        && held.is_empty()
        && let Some(chain) = again.pop()
    {
        work += REQUEST + data_len(&chain);
        match context.begin(engine, queue.dma(), &chain) {
            Begun::Done(done) => queue.complete(chain, done.written)?,
            Begun::Pending(kind) => in_flight.put(chain, kind),
            Begun::Held => held.push(chain),
        }
    }
    engine.start();
    Ok(work)
}

impl<D: Disk> Worker for BlkWorker<D> {
    fn sources(&self) -> Vec<Source> {
        let fd = self.engine.fd().map(|fd| Source {
            token: self.first_token,
            fd: fd.as_raw_fd(),
            interest: Interest::Readable,
        });
        let timer = self.throttle.as_ref().map(|throttle| throttle.source(self.first_token + 1));
        fd.into_iter().chain(timer).collect()
    }

    fn add_queue(&mut self, mut queue: VirtQueue) {
        let held = self.parts.shared.held.take(queue.index());
        // A queue that does not have them is broken, which its next turn finds.
        self.again = held.into_iter().rev().map_while(|head| queue.take_back(head).ok()).collect();
        self.queue = Some(queue);
        self.leaving = false;
    }

    fn remove_queue(&mut self, _: u16) -> Removed {
        if self.queue.is_some() && self.engine.in_flight() > 0 {
            self.leaving = true;
            return Removed::Draining;
        }
        let held = self.held.drain(..).chain(self.again.drain(..).rev());
        let heads = held.map(|chain| chain.head()).collect();
        if let Some(queue) = &self.queue {
            self.parts.shared.held.put(queue.index(), heads);
        }
        self.queue.take().into()
    }

    fn turn(&mut self, _token: u16) -> Result<Turn, QueueBroken> {
        let Self { queue, leaving, engine, in_flight, again, held, throttle, parts, .. } = self;
        let Some(queue) = queue else { return Ok(Turn::Sleep) };
        let (context, throttle) = (parts.context(), throttle.as_ref());
        if engine.in_flight() > 0 {
            reap(engine, in_flight, held, queue, &context)?;
            if *leaving {
                queue.flush()?;
                return Ok(Turn::Sleep);
            }
        }
        let mut work = 0;
        if !again.is_empty() {
            work = try_again(engine, in_flight, again, held, queue, &context)?;
        }
        if !held.is_empty() || !again.is_empty() {
            queue.flush()?;
            return Ok(if held.is_empty() { Turn::Again } else { Turn::Sleep });
        }
        queue.disable_kicks()?;
        loop {
            let mut waits = false;
            while let Some(chain) = queue.pop()? {
                if let Some(throttle) = throttle
                    && !throttle.admit(data_len(&chain))
                {
                    parts.counters.throttled.add(1);
                    queue.unpop(chain);
                    waits = true;
                    break;
                }
                match context.begin(engine, queue.dma(), &chain) {
                    Begun::Done(Done { written, moved }) => {
                        queue.complete(chain, written)?;
                        work += REQUEST + moved;
                    }
                    Begun::Pending(kind) => {
                        work += REQUEST + data_len(&chain);
                        in_flight.put(chain, kind);
                    }
                    Begun::Held => {
                        hold(held, chain);
                        break;
                    }
                }
                if work >= TURN_BYTES {
                    break;
                }
            }
            engine.start();
            if engine.in_flight() > 0 {
                reap(engine, in_flight, held, queue, &context)?;
            }
            queue.flush()?;
            if work >= TURN_BYTES {
                return Ok(Turn::Again);
            }
            // The limit's timer wakes the worker, or the end of a pause.
            if waits || !held.is_empty() || !queue.enable_kicks()? {
                return Ok(Turn::Sleep);
            }
        }
    }
}
