//! vmm-sys-util, and its adapters: events both ways.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`EventFd`](eventfd::EventFd) | [`Event`] | [`event_of`], [`event_fd_of`] |
//!
//! ```
//! use ossature_bus::Interrupt;
//! use ossature_rust_vmm::vmm_sys_util::{event_fd_of, event_of, eventfd::EventFd};
//!
//! // One of theirs as an interrupt of ours.
//! let theirs = EventFd::new(0)?;
//! let interrupt = Interrupt::from(std::sync::Arc::new(event_of(&theirs)?));
//! interrupt.signal()?;
//! assert_eq!(theirs.read()?, 1);
//!
//! // And back.
//! let ours = ossature_bus::Event::new()?;
//! event_fd_of(&ours)?.write(3)?;
//! assert_eq!(ours.take()?, 3);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::io;

use ossature_bus::Event;

pub use ::vmm_sys_util::*;

use crate::fd;

/// The same eventfd as an event of ours. It becomes non-blocking, for its owner, too.
pub fn event_of(event: &eventfd::EventFd) -> io::Result<Event> {
    Event::from_fd(fd::duplicate(event)?)
}

/// The same eventfd as theirs. Reading it does not block.
pub fn event_fd_of(event: &Event) -> io::Result<eventfd::EventFd> {
    Ok(fd::event(fd::duplicate(event)?))
}
