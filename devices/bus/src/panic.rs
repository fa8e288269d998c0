//! A panic of a device's or the VMM's code, caught and turned into a value.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A panic of a handler, a timer's callback or a device.
///
/// The host's panic hook has already printed it, with its place in the source.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Panic {
    /// What the code said when it panicked.
    pub message: String,
}

impl Panic {
    /// Calls `f` and catches its panic.
    ///
    /// What `f` was changing when it panicked may be half changed: drop it, or use it only if each of its states is
    /// valid.
    pub fn catch<R>(f: impl FnOnce() -> R) -> Result<R, Self> {
        catch_unwind(AssertUnwindSafe(f)).map_err(|payload| {
            let text = payload.downcast_ref::<&str>().copied();
            let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
            let panic = Self { message: text.unwrap_or("a panic without a text").to_owned() };
            discard(payload);
            panic
        })
    }
}

/// Drops a panic's payload, which may itself panic when it is dropped.
fn discard(payload: Box<dyn Any + Send>) {
    if let Err(another) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        // The payload of the payload's panic: there is no end to this but to leak it.
        std::mem::forget(another);
    }
}

impl fmt::Display for Panic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
