//! Console (virtio 1.2, section 5.3): a console, `hvc0` in Linux, and ports with names.
//!
//! ```
//! use ossature_virtio::console::{Console, ConsoleInput, ConsoleOutput};
//!
//! let (input, output) = (ConsoleInput::new(std::io::stdin())?, ConsoleOutput::new(std::io::stdout())?);
//! let console = Console::new(Some(input), output);
//! console.window().resize(80, 25);
//! # Ok::<(), std::io::Error>(())
//! ```
//!
//! With a channel for an agent in the guest, to which programs of the host connect:
//!
//! ```
//! use ossature_virtio::console::{Console, ConsoleOutput, ConsolePort, PortSocket};
//!
//! # let folder = std::env::temp_dir().join(format!("ossature-ports-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # let path = folder.join("agent.socket");
//! let console = Console::with_ports([
//!     ConsolePort::console(None, ConsoleOutput::new(std::io::stdout())?),
//!     ConsolePort::socket("org.example.agent".parse()?, PortSocket::bind(&path)?),
//! ])?;
//! # drop(console);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod control;
mod counters;
mod end;
mod input;
mod output;
mod port;
mod rx;
mod socket;
mod state;
mod tx;
mod window;
mod worker;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceError, DeviceState, Event, Handover, MetricVisitor, Syscall};

use self::counters::Counters;
use self::port::Port;
use self::state::PortState;
use self::window::Changed;
use self::worker::ConsoleWorker;
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use input::ConsoleInput;
pub use output::ConsoleOutput;
pub use port::{ConsolePort, PortName, PortNameError};
pub use socket::PortSocket;
pub use window::ConsoleWindow;

/// The queue of buffers for messages to the driver. Before it are the queues of the first port, what the guest reads and
/// what it writes; after the control queues, those of the other ports.
const CONTROL_RX: u16 = 2;
/// The queue of the driver's messages.
const CONTROL_TX: u16 = 3;
const PORT_QUEUE: u16 = 64;
const CONTROL_QUEUE: u16 = 16;
/// The size of the window is known (5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// There are control queues.
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
/// The most ports that a console has.
const MAX_PORTS: usize = 31;

/// The form in which a console is saved.
const KIND: &str = "ossature.virtio-console";
const VERSION: u16 = 3;
const WINDOW: Field = Field::new(1, "size of the window");
const PORTS: Field = Field::new(2, "ports");
/// Of a port.
const NAME: Field = Field::new(6, "name of a port");

/// A console with its ports.
///
/// What the guest writes to a port goes to a [`ConsoleOutput`], what it reads comes from a [`ConsoleInput`], or both are
/// with the client of a [`PortSocket`]. None makes anyone wait, and none loses anything while somebody is there: output
/// for which the host has no room stays in the guest's buffer, also through pauses and in saved states, and input stays
/// where it comes from until the guest takes it.
///
/// There are control queues (`VIRTIO_CONSOLE_F_MULTIPORT`), also for their handshake: a driver that uses them gets no
/// input before it has opened the port. One that does not has the first port alone, and gets input as soon as it has
/// given a buffer.
///
/// A saved state is restored by a console with the same ports. Clients of sockets do not come with it: the guest is told
/// that they are gone.
pub struct Console {
    ports: Ports,
    count: usize,
    window: ConsoleWindow,
    counters: Arc<Counters>,
}

/// The ports. The worker has them for each turn.
type Ports = Arc<Mutex<Vec<Port>>>;

fn lock(ports: &Mutex<Vec<Port>>) -> MutexGuard<'_, Vec<Port>> {
    ports.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The port that a queue belongs to, and whether the guest writes there; `None` for a control queue.
fn port_of(queue: u16) -> Option<(usize, bool)> {
    let port = match queue / 2 {
        0 => 0,
        1 => return None,
        pair => usize::from(pair) - 1,
    };
    Some((port, queue % 2 == 1))
}

impl Console {
    /// A console with one port, which writes to `output` and reads from `input`, if there is one.
    pub fn new(input: Option<ConsoleInput>, output: ConsoleOutput) -> Self {
        Self::of(vec![ConsolePort::console(input, output).0])
    }

    /// One with these ports, from 1 to 31, whose names differ. The [window](Self::window) is that of the first, if it is a
    /// console.
    pub fn with_ports(ports: impl IntoIterator<Item = ConsolePort>) -> Result<Self, DeviceError> {
        let ports: Vec<_> = ports.into_iter().map(|port| port.0).collect();
        if !(1..=MAX_PORTS).contains(&ports.len()) {
            let count = ports.len();
            return Err(DeviceError::new(format!("a console has 1 to {MAX_PORTS} ports, not {count}")));
        }
        for (index, port) in ports.iter().enumerate() {
            let name = &port.name;
            if !name.is_empty() && ports.iter().take(index).any(|other| other.name == *name) {
                return Err(DeviceError::new(format!("two ports of a console are called {name}")));
            }
        }
        Ok(Self::of(ports))
    }

    fn of(ports: Vec<Port>) -> Self {
        let count = ports.len();
        let ports = Arc::new(Mutex::new(ports));
        Self { ports, count, window: ConsoleWindow::default(), counters: Arc::default() }
    }

    /// The handle by which the guest is told the size of the window.
    pub fn window(&self) -> ConsoleWindow {
        self.window.clone()
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("ports", &self.count)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl LocalDevice for Console {
    fn info(&self) -> DeviceInfo {
        // `cols`, `rows` and `max_nr_ports`; `emerg_wr` belongs to a feature that is not offered.
        let config_len = 8;
        let mut queues = vec![PORT_QUEUE, PORT_QUEUE, CONTROL_QUEUE, CONTROL_QUEUE];
        queues.resize(2 + 2 * self.count, PORT_QUEUE);
        DeviceInfo::new(DeviceType::CONSOLE, &queues)
            .with_features(1 << VIRTIO_CONSOLE_F_SIZE | 1 << VIRTIO_CONSOLE_F_MULTIPORT)
            .with_config(config_len)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        // Ports and control queues have much to say to each other, and a turn for each is fair.
        vec![(0..2 + 2 * self.count as u16).collect()]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        let config = u64::from(self.window.size()) | (self.count as u64) << 32;
        crate::config::read(&config.to_le_bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Only `emerg_wr` could be written, and EMERG_WRITE is not offered.
    }

    fn worker(&mut self, _group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let failed = |e| DeviceError::new("no event for the size of the window").with_source(e);
        let resized = Arc::new(Event::new().map_err(failed)?);
        self.window.connect(Some(Changed { config: activation.config.clone(), worker: resized.clone() }));
        let (ports, counters) = (Arc::clone(&self.ports), Arc::clone(&self.counters));
        let window = (self.window.clone(), resized);
        Ok(Box::new(ConsoleWorker::new(ports, window, counters, activation)))
    }

    fn forget_queue(&mut self, index: u16) {
        let Some((port, true)) = port_of(index) else { return };
        if let Some(port) = lock(&self.ports).get_mut(port) {
            (port.state.written, port.cut) = (0, false);
        }
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.window.connect(None);
        for port in lock(&self.ports).iter_mut() {
            port.restore(PortState::default());
        }
        self.counters.host_errors.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(WINDOW, self.window.size());
        fields.list(PORTS, lock(&self.ports).iter(), |fields, port| {
            port.state.save(fields);
            fields.bytes(NAME, port.name.as_bytes());
        });
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let size = fields.u32(WINDOW)?;
        let mut ports = lock(&self.ports);
        let mut names = ports.iter().map(|port| port.name.as_bytes());
        let states = fields.since(2, PORTS, vec![PortState::default()], |fields, field| {
            fields.list(field, MAX_PORTS, |fields| {
                let state = PortState::load(fields)?;
                let name = names.next();
                let saved = fields
                    .since(3, NAME, name.unwrap_or_default(), |f, field| f.bytes(field, PortName::MAX))?;
                if name.is_some_and(|name| name != saved) {
                    return Err(StateError::Inconsistent {
                        field: "name of a port",
                        reason: "it has another",
                    });
                }
                Ok(state)
            })
        })?;
        fields.finish()?;
        if states.len() != ports.len() {
            return Err(StateError::Inconsistent { field: "ports", reason: "the device has others" });
        }
        ports.iter_mut().zip(states).for_each(|(port, state)| port.restore(state));
        drop(ports);
        // Whoever shows it here may say otherwise once the guest runs.
        self.window.set_size(size);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // Descriptors and the window's event, clients of sockets; a writer adds its own.
        &[
            Syscall("accept4"),
            Syscall("close"),
            Syscall("epoll_create1"),
            Syscall("epoll_ctl"),
            Syscall("epoll_wait"),
            Syscall("fcntl"),
            Syscall("fstat"),
            Syscall("ioctl"),
            Syscall("ppoll"),
            Syscall("read"),
            Syscall("readv"),
            Syscall("sendto"),
            Syscall("write"),
        ]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.counters.show(visitor);
    }
}

#[cfg(test)]
mod tests;
