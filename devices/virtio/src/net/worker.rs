//! The card's data plane: both queues and the host's descriptor on one thread.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use super::counters::Counters;
use super::rx::Rx;
use super::shared::Shared;
use super::tx::Tx;
use super::{NetIo, RX, TX};
use crate::{Activation, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// The host's descriptor.
const HOST: u16 = 2;

pub(super) struct NetWorker<I> {
    shared: Shared<I>,
    features: u128,
    rx: Option<Rx>,
    tx: Option<Tx>,
}

impl<I: NetIo> NetWorker<I> {
    pub(super) fn new(io: Arc<I>, counters: Arc<Counters>, activation: &Activation) -> Self {
        let Activation { features, events, .. } = activation.clone();
        Self { shared: Shared { io, counters, events }, features, rx: None, tx: None }
    }

    fn receive(&mut self) -> Result<Turn, QueueBroken> {
        self.rx.as_mut().map_or(Ok(Turn::Sleep), |rx| rx.run(&self.shared))
    }

    fn send(&mut self) -> Result<Turn, QueueBroken> {
        self.tx.as_mut().map_or(Ok(Turn::Sleep), |tx| tx.run(&self.shared))
    }
}

impl<I: NetIo> Worker for NetWorker<I> {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: HOST, fd: self.shared.io.fd().as_raw_fd(), interest: Interest::Both }]
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        match queue.index() {
            RX => self.rx = Some(Rx::new(queue, self.features)),
            _ => self.tx = Some(Tx::new(queue, self.features)),
        }
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        match index {
            RX => self.rx.take().map(Rx::finish).into(),
            _ => self.tx.take().map(Tx::finish).into(),
        }
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        match token {
            RX => self.receive(),
            TX => self.send(),
            _ => {
                let received = self.receive()?;
                let blocked = self.tx.as_ref().is_some_and(Tx::blocked);
                let sent = if blocked { self.send()? } else { Turn::Sleep };
                Ok(if received == Turn::Again { received } else { sent })
            }
        }
    }
}
