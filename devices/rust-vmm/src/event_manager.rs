//! event-manager, and its adapters: its subscribers on our event loop, our event loop on its managers, and virtio
//! workers on either.
//!
//! | there | here | by |
//! |---|---|---|
//! | [`MutEventSubscriber`], or a whole [`EventManager`] | [`Handler`](ossature_bus::Handler) on an [`EventLoop`](ossature_bus::EventLoop) | [`SubscriberHandler`] |
//! | a subscriber | [`EventLoop`](ossature_bus::EventLoop), with all that is hosted on it | [`LoopSubscriber`] |
//! | [`RemoteEndpoint`] | [`Runtime`](ossature_virtio::Runtime) of virtio workers, and the loop of any other device | [`EndpointRuntime`] |
//!
//! # A subscriber of theirs on our loop
//!
//! ```
//! use std::sync::mpsc::{Sender, channel};
//! use ossature_bus::{Event, LoopThread};
//! use ossature_rust_vmm::event_manager::{
//!     EventOps, EventSet, Events, MutEventSubscriber, SubscriberHandler,
//! };
//!
//! /// Sends on what its event counted.
//! struct Counts(std::sync::Arc<Event>, Sender<u64>);
//!
//! impl MutEventSubscriber for Counts {
//!     fn init(&mut self, ops: &mut EventOps) {
//!         ops.add(Events::new(&*self.0, EventSet::IN)).unwrap();
//!     }
//!     fn process(&mut self, _: Events, _: &mut EventOps) {
//!         self.1.send(self.0.take().unwrap()).unwrap();
//!     }
//! }
//!
//! let event = std::sync::Arc::new(Event::new()?);
//! let (counted, counts) = channel();
//! let thread = LoopThread::start("loop")?;
//! let handler = SubscriberHandler::new(Counts(event.clone(), counted))?;
//! let hosted = thread.event_loop().host(handler)?;
//! event.signal()?;
//! assert_eq!(counts.recv()?, 1);
//! // It leaves the loop as it came.
//! let subscriber = hosted.take_back().and_then(SubscriberHandler::into_subscriber);
//! assert!(subscriber.is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Our loop on a manager of theirs
//!
//! ```
//! use std::sync::{Arc, Mutex};
//! use ossature_bus::{Event, EventLoop};
//! use ossature_rust_vmm::event_manager::{EventManager, LoopSubscriber, MutEventSubscriber, SubscriberOps};
//!
//! let mut manager = EventManager::<Arc<Mutex<dyn MutEventSubscriber>>>::new()?;
//! let event_loop = EventLoop::new()?;
//! let subscriber = LoopSubscriber::new(&event_loop, |error| eprintln!("{error}"));
//! manager.add_subscriber(Arc::new(Mutex::new(subscriber)));
//!
//! let event = Arc::new(Event::new()?);
//! let counted = Arc::new(Mutex::new(0));
//! let count = counted.clone();
//! let _hosted = event_loop.on_readable(event.clone(), move |event| {
//!     *count.lock().unwrap() += event.take().unwrap_or(0);
//! })?;
//! event.signal()?;
//! while *counted.lock().unwrap() == 0 {
//!     manager.run()?;
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub use ::event_manager::*;

mod descriptor;
mod handler;
mod runtime;
mod subscriber;

pub use handler::{HandlerError, SubscriberHandler};
pub use runtime::EndpointRuntime;
pub use subscriber::LoopSubscriber;

#[cfg(test)]
mod tests;
