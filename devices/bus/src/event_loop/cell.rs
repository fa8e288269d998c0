//! A hosted handler of any type, and the turns that it takes: no panic leaves a turn (row E1).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::handler::{Handler, Turn};
use crate::Panic;
use crate::sync::{Mutex, lock};

/// Receives the panics of handlers.
pub(super) type Hook = Arc<dyn Fn(Panic) + Send + Sync>;

/// A handler that takes turns.
pub(super) trait TakeTurn: Send + Sync {
    /// Gives the handler a turn. If it panics, `forget` is called, then the handler is dropped.
    fn take_turn(&self, token: u16, forget: &mut dyn FnMut()) -> Result<Turn, Panic>;

    /// Reports that the handler has panicked.
    fn report(&self, panic: Panic);
}

/// Holds a handler until it is taken back or panics.
pub(super) struct Cell<H> {
    /// Locked during a turn.
    handler: Mutex<Option<H>>,
    /// The handler's owner gave it up during one of its turns.
    given_up: AtomicBool,
    hook: Option<Hook>,
}

impl<H> Cell<H> {
    pub(super) fn new(handler: H, hook: Option<Hook>) -> Self {
        Self { handler: Mutex::new(Some(handler)), given_up: AtomicBool::new(false), hook }
    }

    /// Waits for the end of the handler's turn and takes it.
    pub(super) fn take(&self) -> Option<H> {
        lock(&self.handler).take()
    }

    /// Has the turn that is under way on this thread drop the handler at its end.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

impl<H: Handler> TakeTurn for Cell<H> {
    fn take_turn(&self, token: u16, forget: &mut dyn FnMut()) -> Result<Turn, Panic> {
        // Locked until a handler that panicked is dropped: who then finds none knows that it is gone.
        let mut slot = lock(&self.handler);
        let Some(handler) = slot.as_mut() else { return Ok(Turn::Sleep) };
        let turn = Panic::catch(|| handler.turn(token));
        if turn.is_err() {
            // The loop stops watching its descriptors before they are closed.
            forget();
        } else if !self.given_up.load(Ordering::Relaxed) {
            return turn;
        }
        let handler = slot.take();
        let dropped = Panic::catch(|| drop(handler));
        turn.and_then(|_| dropped.map(|()| Turn::Sleep))
    }

    fn report(&self, panic: Panic) {
        if let Some(hook) = &self.hook {
            // A hook that panics has nobody to tell.
            let _ = Panic::catch(|| hook(panic));
        }
    }
}
