//! What workers tell the control plane without waiting for it.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What has happened since the mail was last read.
#[derive(Debug, Default)]
pub(super) struct Letter {
    /// A queue is broken, or its worker could not start: why.
    pub(super) broken: Option<String>,
    /// Configuration space has changed.
    pub(super) config: bool,
}

/// Letters add up to one. Its lock is held for no longer than to read or write it.
#[derive(Debug, Default)]
pub(super) struct Mailbox(Mutex<Letter>);

impl Mailbox {
    fn lock(&self) -> MutexGuard<'_, Letter> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn post(&self, letter: Letter) {
        let mut waiting = self.lock();
        waiting.broken = waiting.broken.take().or(letter.broken);
        waiting.config |= letter.config;
    }

    pub(super) fn take(&self) -> Letter {
        mem::take(&mut self.lock())
    }

    pub(super) fn is_empty(&self) -> bool {
        let Letter { broken, config } = &*self.lock();
        broken.is_none() && !config
    }
}
