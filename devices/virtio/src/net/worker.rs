//! The card's data plane: both queues and the host's descriptor on one thread.

use std::os::fd::AsRawFd;
use std::sync::Arc;

use ossature_bus::EventSink;
use ossature_memory::Dma;

use super::rx::Rx;
use super::tx::Tx;
use super::{Counters, Net, NetIo, RX, TX};
use crate::{Interest, QueueBroken, Source, Start, Turn, VirtQueue, Worker};

const RX_KICK: u16 = 0;
const TX_KICK: u16 = 1;
const HOST: u16 = 2;

/// What both queues work with.
pub(super) struct Shared<I> {
    pub io: Arc<I>,
    pub mem: Dma,
    pub counters: Arc<Counters>,
    pub events: EventSink,
}

struct NetWorker<I> {
    shared: Shared<I>,
    rx: Option<Rx>,
    tx: Option<Tx>,
}

pub(super) fn start<I: NetIo>(net: &Net<I>, start: Start) -> Box<dyn Worker> {
    let Start { features, mem, queues, config: _, events } = start;
    let mut rx = None;
    let mut tx = None;
    for queue in queues {
        match queue.index() {
            RX => rx = Some(Rx::new(queue, features)),
            TX => tx = Some(Tx::new(queue, features)),
            _ => {}
        }
    }
    let (io, counters) = (Arc::clone(&net.io), Arc::clone(&net.counters));
    Box::new(NetWorker { shared: Shared { io, mem, counters, events }, rx, tx })
}

impl<I: NetIo> NetWorker<I> {
    fn receive(&mut self) -> Result<Turn, QueueBroken> {
        self.rx.as_mut().map_or(Ok(Turn::Sleep), |rx| rx.run(&self.shared))
    }

    fn send(&mut self) -> Result<Turn, QueueBroken> {
        self.tx.as_mut().map_or(Ok(Turn::Sleep), |tx| tx.run(&self.shared))
    }
}

impl<I: NetIo> Worker for NetWorker<I> {
    fn sources(&self) -> Vec<Source> {
        let kicks = [(RX_KICK, self.rx.as_ref().map(Rx::queue)), (TX_KICK, self.tx.as_ref().map(Tx::queue))];
        kicks
            .into_iter()
            .filter_map(|(token, queue)| Some((token, queue?.doorbell().as_raw_fd(), Interest::Readable)))
            .chain([(HOST, self.shared.io.fd().as_raw_fd(), Interest::Both)])
            .map(|(token, fd, interest)| Source { token, fd, interest })
            .collect()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        match token {
            RX_KICK => self.receive(),
            TX_KICK => self.send(),
            _ => {
                let received = self.receive()?;
                let blocked = self.tx.as_ref().is_some_and(Tx::blocked);
                let sent = if blocked { self.send()? } else { Turn::Sleep };
                Ok(if received == Turn::Again { received } else { sent })
            }
        }
    }

    fn finish(self: Box<Self>) -> Vec<VirtQueue> {
        self.rx.map(Rx::finish).into_iter().chain(self.tx.map(Tx::finish)).collect()
    }
}
