//! The console's data plane: both queues and the input on one thread.

use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::EventSink;
use ossature_memory::Dma;

use super::{Console, ConsoleInput, Counters, Output, RX, TX, rx, tx};
use crate::{Interest, QueueBroken, Source, Start, Turn, VirtQueue, Worker};

const RX_KICK: u16 = 0;
const TX_KICK: u16 = 1;
const INPUT: u16 = 2;

struct ConsoleWorker {
    mem: Dma,
    rx: Option<VirtQueue>,
    tx: Option<VirtQueue>,
    input: Option<Arc<ConsoleInput>>,
    output: Arc<Mutex<Output>>,
    counters: Arc<Counters>,
    events: EventSink,
}

pub(super) fn start(console: &Console, start: Start) -> Box<dyn Worker> {
    let Start { features: _, mem, queues, config: _, events } = start;
    let mut rx = None;
    let mut tx = None;
    for queue in queues {
        match queue.index() {
            RX => rx = Some(queue),
            TX => tx = Some(queue),
            _ => {}
        }
    }
    Box::new(ConsoleWorker {
        mem,
        rx,
        tx,
        input: console.input.clone(),
        output: Arc::clone(&console.output),
        counters: Arc::clone(&console.counters),
        events,
    })
}

impl Worker for ConsoleWorker {
    fn sources(&self) -> Vec<Source> {
        let kick = |queue: &VirtQueue| queue.doorbell().as_raw_fd();
        let input = self.input.as_ref().and_then(|input| input.source());
        [
            (RX_KICK, self.rx.as_ref().map(kick)),
            (TX_KICK, self.tx.as_ref().map(kick)),
            (INPUT, input.map(|fd| fd.as_raw_fd())),
        ]
        .into_iter()
        .filter_map(|(token, fd)| Some(Source { token, fd: fd?, interest: Interest::Readable }))
        .collect()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        if token == TX_KICK {
            let Some(queue) = &mut self.tx else { return Ok(Turn::Sleep) };
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            tx::run(queue, &mut **output, &self.mem, &self.counters, &self.events)
        } else {
            let Some(queue) = &mut self.rx else { return Ok(Turn::Sleep) };
            rx::run(queue, self.input.as_deref(), &self.mem, &self.counters, &self.events)
        }
    }

    fn finish(self: Box<Self>) -> Vec<VirtQueue> {
        self.rx.into_iter().chain(self.tx).collect()
    }
}
