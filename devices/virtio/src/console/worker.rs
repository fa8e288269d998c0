//! The console's data plane: both queues and the input on one thread.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::EventSink;

use super::counters::Counters;
use super::input::ConsoleInput;
use super::{RX, TX, rx, tx};
use crate::{Activation, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

pub(super) type Output = Box<dyn Write + Send>;

/// The input's descriptor.
const INPUT: u16 = 2;

pub(super) struct ConsoleWorker {
    rx: Option<VirtQueue>,
    tx: Option<VirtQueue>,
    input: Option<Arc<ConsoleInput>>,
    output: Arc<Mutex<Output>>,
    counters: Arc<Counters>,
    events: EventSink,
}

impl ConsoleWorker {
    pub(super) fn new(
        input: Option<Arc<ConsoleInput>>,
        output: Arc<Mutex<Output>>,
        counters: Arc<Counters>,
        activation: &Activation,
    ) -> Self {
        let events = activation.events.clone();
        Self { rx: None, tx: None, input, output, counters, events }
    }
}

impl Worker for ConsoleWorker {
    fn sources(&self) -> Vec<Source> {
        let input = self.input.as_ref().and_then(|input| input.source());
        let source =
            input.map(|fd| Source { token: INPUT, fd: fd.as_raw_fd(), interest: Interest::Readable });
        source.into_iter().collect()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        match queue.index() {
            RX => self.rx = Some(queue),
            _ => self.tx = Some(queue),
        }
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        match index {
            RX => self.rx.take().into(),
            _ => self.tx.take().into(),
        }
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        if token == TX {
            let Some(queue) = &mut self.tx else { return Ok(Turn::Sleep) };
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            tx::run(queue, &mut **output, &self.counters, &self.events)
        } else {
            let Some(queue) = &mut self.rx else { return Ok(Turn::Sleep) };
            rx::run(queue, self.input.as_deref(), &self.counters, &self.events)
        }
    }
}
