//! The console's data plane: all queues, and the host's ends of all ports, on one thread.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use ossature_bus::{Event, EventSink};

use super::control::Control;
use super::counters::Counters;
use super::port::Port;
use super::window::ConsoleWindow;
use super::{
    CONTROL_RX, CONTROL_TX, Ports, VIRTIO_CONSOLE_F_MULTIPORT, VIRTIO_CONSOLE_F_SIZE, lock, port_of, rx, tx,
};
use crate::{Activation, Interest, QueueBroken, Removed, Source, Turn, VirtQueue, Worker};

pub(super) struct ConsoleWorker {
    lanes: Vec<Lane>,
    control: Control,
    /// The driver uses the control queues, and opens a port before it takes its input.
    multiport: bool,
    /// Ports that the driver has opened, whose input is still to be given: a bit for each.
    opened: u64,
    /// Locked once a turn; nobody else has it for long while there is a worker.
    ports: Ports,
    sources: Vec<Source>,
    window: ConsoleWindow,
    resized: Arc<Event>,
    counters: Arc<Counters>,
    events: EventSink,
}

/// The queues of a port.
#[derive(Default)]
struct Lane {
    rx: Option<VirtQueue>,
    tx: Option<VirtQueue>,
    /// There is output that the last turn has left: for want of room, or for the next turn.
    unfinished: bool,
}

/// What a turn is for.
enum Wake {
    /// A queue has been kicked.
    Queue(u16),
    /// Something has happened at the host's end of a port.
    Input(usize),
    /// It has room for output.
    Output(usize),
    /// The window has another size.
    Window,
}

/// The first token that is no queue's.
fn host_tokens(ports: usize) -> u16 {
    2 + 2 * ports as u16
}

fn input_token(ports: usize, port: usize) -> u16 {
    host_tokens(ports) + 2 * port as u16
}

fn window_token(ports: usize) -> u16 {
    input_token(ports, ports)
}

impl Wake {
    fn of(token: u16, ports: usize) -> Self {
        match token.checked_sub(host_tokens(ports)) {
            None => Self::Queue(token),
            Some(end) if usize::from(end / 2) >= ports => Self::Window,
            Some(end) if end % 2 == 0 => Self::Input((end / 2).into()),
            Some(end) => Self::Output((end / 2).into()),
        }
    }
}

impl ConsoleWorker {
    pub(super) fn new(
        ports: Ports,
        window: (ConsoleWindow, Arc<Event>),
        counters: Arc<Counters>,
        activation: &Activation,
    ) -> Self {
        let (window, resized) = window;
        let mut sources = Vec::new();
        let mut locked = lock(&ports);
        let count = locked.len();
        for (index, port) in locked.iter_mut().enumerate() {
            // They may have changed while nobody was there to tell of it.
            port.resized();
            port.state.connection(false, port.end.is_connected());
            let (input, output) = port.end.sources();
            let token = input_token(count, index);
            sources.extend(input.map(|fd| Source { token, fd, interest: Interest::Readable }));
            sources.extend(output.map(|fd| Source { token: token + 1, fd, interest: Interest::Writable }));
        }
        drop(locked);
        let fd = resized.as_fd().as_raw_fd();
        sources.push(Source { token: window_token(count), fd, interest: Interest::Readable });
        let has = |feature: u32| activation.features & 1 << feature != 0;
        Self {
            lanes: (0..count).map(|_| Lane::default()).collect(),
            control: Control { sized: has(VIRTIO_CONSOLE_F_SIZE), ..Control::default() },
            multiport: has(VIRTIO_CONSOLE_F_MULTIPORT),
            opened: 0,
            ports,
            sources,
            window,
            resized,
            counters,
            events: activation.events.clone(),
        }
    }

    fn queue(&mut self, index: u16) -> Option<&mut Option<VirtQueue>> {
        match port_of(index) {
            Some((port, writes)) => {
                let lane = self.lanes.get_mut(port)?;
                Some(if writes { &mut lane.tx } else { &mut lane.rx })
            }
            None if index == CONTROL_RX => Some(&mut self.control.rx),
            None => Some(&mut self.control.tx),
        }
    }

    /// Gives the guest a port's input.
    fn receive(&mut self, ports: &mut [Port], index: usize) -> Result<Turn, QueueBroken> {
        let (Some(lane), Some(port)) = (self.lanes.get_mut(index), ports.get_mut(index)) else {
            return Ok(Turn::Sleep);
        };
        let Some(queue) = &mut lane.rx else { return Ok(Turn::Sleep) };
        let listens = if self.multiport { port.state.open } else { index == 0 };
        let input = listens.then_some(&mut port.end);
        let turn = rx::run(queue, input, &self.counters, &self.events)?;
        self.follow(ports, index, turn)
    }

    /// Takes a port's output from the guest.
    fn transmit(&mut self, ports: &mut [Port], index: usize) -> Result<Turn, QueueBroken> {
        let (Some(lane), Some(port)) = (self.lanes.get_mut(index), ports.get_mut(index)) else {
            return Ok(Turn::Sleep);
        };
        let Some(queue) = &mut lane.tx else { return Ok(Turn::Sleep) };
        let (turn, unfinished) = tx::run(queue, port, &self.counters, &self.events)?;
        lane.unfinished = unfinished;
        self.follow(ports, index, turn)
    }

    /// Sees what a `turn` has shown of the host's end.
    fn follow(&mut self, ports: &mut [Port], index: usize, turn: Turn) -> Result<Turn, QueueBroken> {
        if ports.get(index).is_some_and(Port::has_changed) {
            self.update(ports, index)?;
        }
        Ok(turn)
    }

    /// Sees who has come and who has gone at the host's end, and tells the driver.
    fn update(&mut self, ports: &mut [Port], index: usize) -> Result<(), QueueBroken> {
        let Some(port) = ports.get_mut(index) else { return Ok(()) };
        if port.update(&self.counters, &self.events) {
            self.control.send(ports, &self.window)?;
        }
        Ok(())
    }

    /// Something has happened at the host's end.
    fn attend(&mut self, ports: &mut [Port], index: usize) -> Result<Turn, QueueBroken> {
        self.update(ports, index)?;
        let mut again = self.receive(ports, index)? == Turn::Again;
        if self.lanes.get(index).is_some_and(|lane| lane.unfinished) {
            again |= self.transmit(ports, index)? == Turn::Again;
        }
        again |= ports.get(index).is_some_and(Port::has_changed);
        Ok(if again { Turn::Again } else { Turn::Sleep })
    }

    /// Hears what the driver says and does what follows from it: input of one port for each turn.
    fn negotiate(&mut self, ports: &mut [Port]) -> Result<Turn, QueueBroken> {
        let opened = &mut self.opened;
        let heard = self.control.receive(ports, &self.counters, |port| *opened |= 1 << port)?;
        self.control.send(ports, &self.window)?;
        if self.opened != 0 {
            let next = self.opened.trailing_zeros() as usize;
            if self.receive(ports, next)? == Turn::Sleep {
                self.opened &= !(1 << next);
            }
        }
        Ok(if self.opened != 0 { Turn::Again } else { heard })
    }
}

impl Worker for ConsoleWorker {
    fn sources(&self) -> Vec<Source> {
        self.sources.clone()
    }

    fn add_queue(&mut self, queue: VirtQueue) {
        if let Some(place) = self.queue(queue.index()) {
            *place = Some(queue);
        }
    }

    fn remove_queue(&mut self, index: u16) -> Removed {
        self.queue(index).and_then(Option::take).into()
    }

    fn turn(&mut self, token: u16) -> Result<Turn, QueueBroken> {
        let ports = Arc::clone(&self.ports);
        let ports = &mut *lock(&ports);
        match Wake::of(token, ports.len()) {
            Wake::Queue(CONTROL_TX) => self.negotiate(ports),
            Wake::Queue(CONTROL_RX) => self.control.send(ports, &self.window).map(|()| Turn::Sleep),
            Wake::Queue(queue) => match port_of(queue) {
                Some((port, true)) => self.transmit(ports, port),
                Some((port, false)) => self.receive(ports, port),
                None => Ok(Turn::Sleep),
            },
            Wake::Input(port) => self.attend(ports, port),
            Wake::Output(port) if self.lanes.get(port).is_some_and(|lane| lane.unfinished) => {
                self.transmit(ports, port)
            }
            Wake::Window if self.resized.take().is_ok_and(|count| count > 0) => {
                ports.iter_mut().for_each(Port::resized);
                self.control.send(ports, &self.window).map(|()| Turn::Sleep)
            }
            _ => Ok(Turn::Sleep),
        }
    }
}
