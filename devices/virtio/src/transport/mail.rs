//! What workers tell the control plane without waiting for it.

use std::mem;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::Failure;

/// What has happened since the mail was last read.
#[derive(Debug, Default)]
pub(super) struct Letter {
    /// Why the device needs a reset.
    pub(super) broken: Option<Failure>,
    /// What a panic of the device's code said.
    pub(super) panicked: Option<Failure>,
    /// Configuration space has changed.
    pub(super) config: bool,
}

impl From<Failure> for Letter {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NeedsReset { .. } => Self { broken: Some(failure), ..Self::default() },
            Failure::Panicked { .. } => Self { panicked: Some(failure), ..Self::default() },
        }
    }
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
        waiting.panicked = waiting.panicked.take().or(letter.panicked);
        waiting.config |= letter.config;
    }

    pub(super) fn take(&self) -> Letter {
        mem::take(&mut self.lock())
    }

    pub(super) fn is_empty(&self) -> bool {
        let Letter { broken, panicked, config } = &*self.lock();
        broken.is_none() && panicked.is_none() && !config
    }
}
