//! A manager of theirs, with its subscribers, as a handler on our loop.

use std::io;
use std::os::fd::RawFd;

use ossature_bus::{Handler, Interest, Source, Turn};

use super::{
    Error, EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps, descriptor,
};

/// Why subscribers cannot be put on an event loop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HandlerError {
    /// The event manager failed.
    #[error("the event manager failed")]
    Manager(#[from] Error),
    /// No eventfd.
    #[error("cannot make an eventfd")]
    Mark(#[source] io::Error),
    /// The descriptors of this process cannot be listed.
    #[error("cannot list /proc/self/fdinfo, which must be there while a SubscriberHandler is made")]
    Proc(#[source] io::Error),
    /// The event manager's descriptor is not among those of this process.
    #[error("no descriptor in /proc/self/fdinfo is the event manager's")]
    Descriptor,
}

/// A subscriber of event-manager as a [`Handler`] for [`EventLoop::host`](ossature_bus::EventLoop::host), with a manager
/// around it that gives it its [`EventOps`](super::EventOps). More subscribers can join it.
///
/// A turn hands out what one wait of the manager finds, without waiting, and asks for another turn until a wait finds
/// nothing. A level-triggered descriptor that the subscriber leaves readable thus keeps the loop busy, as it keeps an
/// event manager.
///
/// Where the manager, which panics when a subscriber closes a descriptor that it still watches, does so, the loop goes
/// on without it; see [`EventLoop::on_panic`](ossature_bus::EventLoop::on_panic).
///
/// Making one reads `/proc/self/fdinfo`: do that before a sandbox hides it.
#[derive(Debug)]
pub struct SubscriberHandler<S: MutEventSubscriber> {
    manager: EventManager<S>,
    first: SubscriberId,
    fd: RawFd,
}

impl<S: MutEventSubscriber> SubscriberHandler<S> {
    /// With this subscriber, whose `init` is called here.
    pub fn new(subscriber: S) -> Result<Self, HandlerError> {
        let mut manager = EventManager::new()?;
        let first = manager.add_subscriber(subscriber);
        let fd = descriptor::find(&mut manager, first)?;
        Ok(Self { manager, first, fd })
    }

    /// Adds, removes and reaches subscribers while the handler is on no loop.
    pub fn subscribers(&mut self) -> &mut impl SubscriberOps<Subscriber = S> {
        &mut self.manager
    }

    /// Adds, removes and reaches subscribers from anywhere, once the handler is hosted: in its turns.
    pub fn endpoint(&self) -> RemoteEndpoint<S> {
        self.manager.remote_endpoint()
    }

    /// The subscriber that it was made with, unless that has been removed.
    pub fn into_subscriber(mut self) -> Option<S> {
        self.manager.remove_subscriber(self.first).ok()
    }
}

impl<S: MutEventSubscriber + Send> Handler for SubscriberHandler<S> {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: 0, fd: self.fd, interest: Interest::Readable }]
    }

    fn turn(&mut self, _: u16) -> Turn {
        match self.manager.run_with_timeout(0) {
            // An edge comes with what becomes ready from now on.
            Ok(0) => Turn::Sleep,
            Ok(_) => Turn::Again,
            // epoll_wait(2) fails only with wrong arguments.
            Err(_) => Turn::Sleep,
        }
    }
}
