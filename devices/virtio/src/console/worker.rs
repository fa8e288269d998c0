//! The console's data plane: all queues, the input and the output on one thread.

use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::{Event, EventSink};

use super::control::Control;
use super::counters::Counters;
use super::input::ConsoleInput;
use super::port::Port;
use super::window::ConsoleWindow;
use super::{CONTROL_RX, CONTROL_TX, RX, TX, VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_F_SIZE, rx, tx};
use crate::{Activation, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

/// The input's descriptor.
const INPUT: u16 = 4;
/// The output's.
const OUTPUT: u16 = 5;
/// The window has another size.
const WINDOW: u16 = 6;

pub(super) struct ConsoleWorker {
    rx: Option<VirtQueue>,
    tx: Option<VirtQueue>,
    control: Control,
    /// The driver uses the control queues, and opens a port before it takes its input.
    multiport: bool,
    /// There is output that the last turn has left: for want of room, or for the next turn.
    unfinished: bool,
    input: Option<Arc<ConsoleInput>>,
    /// Locked once a turn; nobody else has it for long while there is a worker.
    port: Arc<Mutex<Port>>,
    output: Option<RawFd>,
    window: ConsoleWindow,
    resized: Arc<Event>,
    counters: Arc<Counters>,
    events: EventSink,
}

impl ConsoleWorker {
    pub(super) fn new(
        input: Option<Arc<ConsoleInput>>,
        port: Arc<Mutex<Port>>,
        window: (ConsoleWindow, Arc<Event>),
        counters: Arc<Counters>,
        activation: &Activation,
    ) -> Self {
        let output = {
            let mut port = lock(&port);
            // It may have changed while nobody was there to tell of it.
            port.state.resized();
            port.output.source().map(|fd| fd.as_raw_fd())
        };
        let (window, resized) = window;
        let has = |feature: u32| activation.features & 1 << feature != 0;
        Self {
            rx: None,
            tx: None,
            control: Control { sized: has(VIRTIO_CONSOLE_F_SIZE), ..Control::default() },
            multiport: has(VIRTIO_CONSOLE_F_MULTIPORT),
            unfinished: false,
            input,
            port,
            output,
            window,
            resized,
            counters,
            events: activation.events.clone(),
        }
    }

    fn queue(&mut self, index: u16) -> &mut Option<VirtQueue> {
        match index {
            RX => &mut self.rx,
            TX => &mut self.tx,
            CONTROL_RX => &mut self.control.rx,
            _ => &mut self.control.tx,
        }
    }

    fn receive(&mut self, port: &Port) -> Result<Turn, QueueBroken> {
        let Some(queue) = &mut self.rx else { return Ok(Turn::Sleep) };
        let input = self.input.as_deref().filter(|_| port.state.open || !self.multiport);
        rx::run(queue, input, &self.counters, &self.events)
    }

    fn transmit(&mut self, port: &mut Port) -> Result<Turn, QueueBroken> {
        let Some(queue) = &mut self.tx else { return Ok(Turn::Sleep) };
        let (turn, unfinished) = tx::run(queue, port, &self.counters, &self.events)?;
        self.unfinished = unfinished;
        Ok(turn)
    }

    /// Hears what the driver says and does what follows from it.
    fn negotiate(&mut self, port: &mut Port) -> Result<Turn, QueueBroken> {
        let heard = self.control.receive(&mut port.state, &self.counters)?;
        self.control.send(&mut port.state, &self.window)?;
        let received = self.receive(port)?;
        Ok(if heard == Turn::Again { heard } else { received })
    }
}

fn lock(port: &Mutex<Port>) -> MutexGuard<'_, Port> {
    port.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker for ConsoleWorker {
    fn sources(&self) -> Vec<Source> {
        let input = self.input.as_ref().and_then(|input| input.source()).map(|fd| fd.as_raw_fd());
        let readable = |token, fd| Source { token, fd, interest: Interest::Readable };
        let input = input.map(|fd| readable(INPUT, fd));
        let output = self.output.map(|fd| Source { token: OUTPUT, fd, interest: Interest::Writable });
        let window = readable(WINDOW, self.resized.as_fd().as_raw_fd());
        input.into_iter().chain(output).chain([window]).collect()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        let index = queue.index();
        *self.queue(index) = Some(queue);
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        self.queue(index).take().into()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let port = Arc::clone(&self.port);
        let mut port = lock(&port);
        match token {
            RX | INPUT => self.receive(&port),
            TX => self.transmit(&mut port),
            OUTPUT if self.unfinished => self.transmit(&mut port),
            CONTROL_TX => self.negotiate(&mut port),
            CONTROL_RX => self.control.send(&mut port.state, &self.window).map(|()| Turn::Sleep),
            WINDOW if self.resized.take().is_ok_and(|count| count > 0) => {
                port.state.resized();
                self.control.send(&mut port.state, &self.window).map(|()| Turn::Sleep)
            }
            _ => Ok(Turn::Sleep),
        }
    }
}
