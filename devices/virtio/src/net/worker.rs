//! The card's data plane: a pair of queues with the host's descriptor, or the control queue, on one thread.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use ossature_bus::{Event, Throttle};

use super::control::Control;
use super::io::NetIo;
use super::rx::Rx;
use super::shared::{Pair, Shared};
use super::tx::{self, Tx};
use super::{Role, Roles};
use crate::{ConfigInterrupt, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// What wakes a worker beside its queues: tokens from the number of the card's queues on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wake {
    /// The host's descriptor.
    Host,
    /// Settings have changed.
    Settings,
    /// The limit of packets to the guest.
    ReceiveLimit,
    /// The limit of packets from the guest.
    SendLimit,
}

/// A worker. Which of the queues are there depends on its driver.
pub(super) struct NetWorker<I> {
    shared: Shared<I>,
    roles: Roles,
    /// Its pair of queues. The worker of the control queue has one that does not exist.
    number: u16,
    rx: Option<Rx>,
    tx: Option<Tx>,
    control: Option<Control>,
    /// A queue that the driver must not use: one of a control queue or of a pair that it has not negotiated.
    unused: Vec<VirtQueue>,
    receive_limit: Throttle,
    send_limit: Throttle,
    settings: Arc<Event>,
    config: ConfigInterrupt,
    /// The host knows whether this pair of queues is in use.
    placed: bool,
}

impl<I: NetIo> NetWorker<I> {
    pub(super) fn new(
        shared: Shared<I>,
        roles: Roles,
        number: u16,
        config: ConfigInterrupt,
    ) -> io::Result<Self> {
        let settings = Arc::new(Event::new()?);
        let pair = shared.pairs.get(usize::from(number));
        if let Some(pair) = pair {
            pair.wake_by(&settings);
        }
        Ok(Self {
            receive_limit: shared.card.rx_limiter.throttle()?,
            send_limit: shared.card.tx_limiter.throttle()?,
            rx: None,
            tx: None,
            control: None,
            unused: Vec::new(),
            placed: false,
            shared,
            roles,
            number,
            settings,
            config,
        })
    }

    fn pair(&self) -> Option<&Pair<I>> {
        self.shared.pairs.get(usize::from(self.number))
    }

    fn receive(&mut self) -> Result<Turn, QueueBroken> {
        self.rx.as_mut().map_or(Ok(Turn::Sleep), |rx| rx.run(&self.shared, self.number, &self.receive_limit))
    }

    fn send(&mut self) -> Result<Turn, QueueBroken> {
        self.tx.as_mut().map_or(Ok(Turn::Sleep), |tx| tx.run(&self.shared, self.number, &self.send_limit))
    }

    /// The host's descriptor is ready for something.
    fn host(&mut self) -> Result<Turn, QueueBroken> {
        // What a descriptor that the host gives no packets to is watched for first, it is not woken by afterwards: it is
        // watched by now.
        if !std::mem::replace(&mut self.placed, true) {
            self.place();
        }
        let received = self.receive()?;
        let blocked = self.tx.as_ref().is_some_and(Tx::blocked);
        if let Some(Pair { io, counters, .. }) = self.pair() {
            tx::flush(io, (0, 0), counters, &self.shared.events);
        }
        let sent = if blocked { self.send()? } else { Turn::Sleep };
        if self.pair().is_some_and(Pair::has_news) {
            self.config.raise();
        }
        Ok(if received == Turn::Again { received } else { sent })
    }

    fn place(&mut self) {
        let Some(Pair { io, counters, .. }) = self.pair() else { return };
        // Under the lock, so that a command that comes now is obeyed after this.
        let settings = self.shared.card.settings();
        if let Err(e) = io.set_active(self.number < settings.pairs) {
            counters.host_errors.note(&self.shared.events, "leave a queue of the host's interface alone", &e);
        }
    }

    fn wake(&self, token: u16) -> Option<Wake> {
        let wakes = [Wake::Host, Wake::Settings, Wake::ReceiveLimit, Wake::SendLimit];
        wakes.get(usize::from(token.checked_sub(self.roles.queues())?)).copied()
    }
}

impl<I: NetIo> Worker for NetWorker<I> {
    fn sources(&self) -> Vec<Source> {
        let Some(pair) = self.pair() else { return Vec::new() };
        let first = self.roles.queues();
        let (host, settings) = (pair.io.fd().as_raw_fd(), self.settings.as_raw_fd());
        vec![
            Source { token: first, fd: host, interest: Interest::Both },
            Source { token: first + 1, fd: settings, interest: Interest::Readable },
            self.receive_limit.source(first + 2),
            self.send_limit.source(first + 3),
        ]
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        let (features, index) = (self.shared.features, queue.index());
        match self.roles.of(index) {
            Role::Receive => self.rx = Some(Rx::new(queue, features)),
            Role::Send => self.tx = Some(Tx::new(queue, features)),
            Role::Control => self.control = Some(Control(queue)),
            Role::None => self.unused.push(queue),
        }
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        let queue = match self.roles.of(index) {
            Role::Receive => self.rx.take().map(Rx::finish),
            Role::Send => self.tx.take().map(Tx::finish),
            Role::Control => self.control.take().map(|control| control.0),
            Role::None => {
                let at = self.unused.iter().position(|queue| queue.index() == index);
                at.map(|at| self.unused.swap_remove(at))
            }
        };
        queue.into()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        match self.wake(token) {
            Some(Wake::Host) => self.host(),
            Some(Wake::Settings) => {
                // Watched for its edges: the count does not matter.
                self.receive()
            }
            Some(Wake::ReceiveLimit) => self.receive(),
            Some(Wake::SendLimit) => self.send(),
            None => match self.roles.of(token) {
                Role::Receive => self.receive(),
                Role::Send => self.send(),
                Role::Control => {
                    self.control.as_mut().map_or(Ok(Turn::Sleep), |control| control.run(&self.shared))
                }
                Role::None => Ok(Turn::Sleep),
            },
        }
    }
}
