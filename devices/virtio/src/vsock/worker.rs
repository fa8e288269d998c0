//! The device's data plane: its queues and all sockets of the host's on one thread.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::hub::Hub;
use super::rx::Rx;
use super::{EVENT, RX, TX, tx};
use crate::{Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// Something has happened on the host: one descriptor stands for those of all connections.
const HOST: u16 = 3;
/// The event: all connections are gone (5.10.6.7).
const TRANSPORT_RESET: u32 = 0;
/// Buffers that are too small for an event, of which a turn takes at most so many.
const TURN_EVENTS: usize = 16;

pub(super) struct VsockWorker {
    /// Locked once a turn; nobody else has it for long while there is a worker.
    hub: Arc<Mutex<Hub>>,
    host: RawFd,
    rx: Option<Rx>,
    tx: Option<VirtQueue>,
    event: Option<VirtQueue>,
}

pub(super) fn lock(hub: &Mutex<Hub>) -> MutexGuard<'_, Hub> {
    hub.lock().unwrap_or_else(PoisonError::into_inner)
}

impl VsockWorker {
    pub(super) fn new(hub: Arc<Mutex<Hub>>) -> Self {
        let host = lock(&hub).descriptor().as_raw_fd();
        Self { hub, host, rx: None, tx: None, event: None }
    }

    /// Tells the guest once that its connections are gone.
    fn tell(&mut self, hub: &mut Hub) -> Result<Turn, QueueBroken> {
        let Some(queue) = self.event.as_mut().filter(|_| hub.lost) else { return Ok(Turn::Sleep) };
        for _ in 0..TURN_EVENTS {
            let Some(chain) = queue.pop()? else {
                queue.flush()?;
                return Ok(if queue.enable_kicks()? { Turn::Again } else { Turn::Sleep });
            };
            let fits = chain.writable_len() as usize >= size_of_val(&TRANSPORT_RESET);
            // The queue has found it in RAM.
            let written =
                if fits { queue.dma().scatter_obj(chain.writable(), TRANSPORT_RESET.to_le()) } else { Ok(0) };
            queue.complete(chain, written.unwrap_or(0) as u32)?;
            if fits {
                hub.lost = false;
                queue.flush()?;
                return Ok(Turn::Sleep);
            }
        }
        queue.flush()?;
        Ok(Turn::Again)
    }
}

impl Worker for VsockWorker {
    fn sources(&self) -> Vec<Source> {
        vec![Source { token: HOST, fd: self.host, interest: Interest::Readable }]
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        match queue.index() {
            RX => self.rx = Some(Rx::new(queue)),
            TX => self.tx = Some(queue),
            _ => self.event = Some(queue),
        }
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        match index {
            RX => self.rx.take().map(Rx::finish).into(),
            TX => self.tx.take().into(),
            EVENT => self.event.take().into(),
            _ => Removed::Unknown,
        }
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let hub = Arc::clone(&self.hub);
        let hub = &mut *lock(&hub);
        let mut again = match token {
            EVENT => return self.tell(hub),
            HOST => hub.poll() == Turn::Again,
            _ => false,
        };
        if let Some(queue) = self.tx.as_mut().filter(|_| token == TX || hub.stalled) {
            again |= tx::run(queue, hub)? == Turn::Again;
        }
        if let Some(rx) = &mut self.rx {
            again |= rx.run(hub)? == Turn::Again;
        }
        again |= hub.stalled && hub.may_reply();
        Ok(if again { Turn::Again } else { Turn::Sleep })
    }
}
