//! Console (virtio 1.2, section 5.3): one port, `hvc0` in Linux.
//!
//! ```
//! use ossature_virtio::console::{Console, ConsoleInput, ConsoleOutput};
//!
//! let (input, output) = (ConsoleInput::new(std::io::stdin())?, ConsoleOutput::new(std::io::stdout())?);
//! let console = Console::new(Some(input), output);
//! console.window().resize(80, 25);
//! # Ok::<(), std::io::Error>(())
//! ```

mod control;
mod counters;
mod input;
mod output;
mod port;
mod rx;
mod tx;
mod window;
mod worker;

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceError, DeviceState, Event, Handover, MetricVisitor, Syscall};

use self::counters::Counters;
use self::port::{Port, PortState};
use self::window::Changed;
use self::worker::ConsoleWorker;
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use input::ConsoleInput;
pub use output::ConsoleOutput;
pub use window::ConsoleWindow;

/// The queue of buffers for what the guest reads.
const RX: u16 = 0;
/// The queue of what the guest writes.
const TX: u16 = 1;
/// The queue of buffers for messages to the driver.
const CONTROL_RX: u16 = 2;
/// The queue of the driver's messages.
const CONTROL_TX: u16 = 3;
const QUEUE_SIZES: [u16; 4] = [64, 64, 16, 16];
/// The size of the window is known (5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;
/// There are control queues.
const VIRTIO_CONSOLE_F_MULTIPORT: u32 = 1;
const MAX_PORTS: u32 = 1;

/// The form in which a console is saved.
const KIND: &str = "ossature.virtio-console";
const VERSION: u16 = 2;
const WINDOW: Field = Field::new(1, "size of the window");
const PORTS: Field = Field::new(2, "ports");

/// A console with one port.
///
/// What the guest writes goes to a [`ConsoleOutput`], what it reads comes from a [`ConsoleInput`]. Neither makes anyone
/// wait, and neither loses anything: output for which the host has no room stays in the guest's buffer, also through
/// pauses and in saved states, and input stays where it comes from until the guest takes it.
///
/// There are control queues (`VIRTIO_CONSOLE_F_MULTIPORT`), for their handshake: a driver that uses them gets no input
/// before it has opened the port. One that does not gets input as soon as it has given a buffer.
pub struct Console {
    input: Option<Arc<ConsoleInput>>,
    port: Arc<Mutex<Port>>,
    window: ConsoleWindow,
    counters: Arc<Counters>,
}

impl Console {
    /// A console that writes to `output` and reads from `input`, if there is one.
    pub fn new(input: Option<ConsoleInput>, output: ConsoleOutput) -> Self {
        let port = Port { output, state: PortState::default() };
        Self {
            input: input.map(Arc::new),
            port: Arc::new(Mutex::new(port)),
            window: ConsoleWindow::default(),
            counters: Arc::default(),
        }
    }

    /// The port. If there is a worker, it may have it for a turn.
    fn port(&self) -> MutexGuard<'_, Port> {
        self.port.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The handle by which the guest is told the size of the window.
    pub fn window(&self) -> ConsoleWindow {
        self.window.clone()
    }
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("input", &self.input)
            .field("window", &self.window)
            .finish_non_exhaustive()
    }
}

impl LocalDevice for Console {
    fn info(&self) -> DeviceInfo {
        // `cols`, `rows` and `max_nr_ports`; `emerg_wr` belongs to a feature that is not offered.
        let config_len = 8;
        DeviceInfo::new(DeviceType::CONSOLE, &QUEUE_SIZES)
            .with_features(1 << VIRTIO_CONSOLE_F_SIZE | 1 << VIRTIO_CONSOLE_F_MULTIPORT)
            .with_config(config_len)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![RX, TX, CONTROL_RX, CONTROL_TX]]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        let config = u64::from(self.window.size()) | u64::from(MAX_PORTS) << 32;
        crate::config::read(&config.to_le_bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Only `emerg_wr` could be written, and EMERG_WRITE is not offered.
    }

    fn worker(&mut self, _group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        let failed = |e| DeviceError::new("no event for the size of the window").with_source(e);
        let resized = Arc::new(Event::new().map_err(failed)?);
        self.window.connect(Some(Changed { config: activation.config.clone(), worker: resized.clone() }));
        let (port, counters) = (Arc::clone(&self.port), Arc::clone(&self.counters));
        let window = (self.window.clone(), resized);
        Ok(Box::new(ConsoleWorker::new(self.input.clone(), port, window, counters, activation)))
    }

    fn forget_queue(&mut self, index: u16) {
        if index == TX {
            self.port().state.written = 0;
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
        self.port().state = PortState::default();
        self.counters.host_errors.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(WINDOW, self.window.size());
        fields.list(PORTS, &[self.port().state], |fields, port| port.save(fields));
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let size = fields.u32(WINDOW)?;
        let ports = fields.since(2, PORTS, vec![PortState::default()], |fields, field| {
            fields.list(field, MAX_PORTS as usize, PortState::load)
        })?;
        fields.finish()?;
        let [port] = ports[..] else { return Err(StateError::Missing { field: "ports" }) };
        self.port().state = port;
        // Whoever shows it here may say otherwise once the guest runs.
        self.window.set_size(size);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // Descriptors and the window's event; a writer adds its own.
        &[Syscall("ppoll"), Syscall("read"), Syscall("readv"), Syscall("sendto"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.counters.show(visitor);
    }
}

#[cfg(test)]
mod tests;
