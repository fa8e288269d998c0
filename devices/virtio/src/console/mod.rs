//! Console (virtio 1.2, section 5.3): one port, `hvc0` in Linux.
//!
//! ```
//! use std::os::fd::AsFd;
//! use ossature_virtio::console::{Console, ConsoleInput};
//!
//! let stdin = std::io::stdin().as_fd().try_clone_to_owned()?;
//! let console = Console::new(Some(ConsoleInput::new(stdin)?), Box::new(std::io::stdout()));
//! console.window().resize(80, 25);
//! # Ok::<(), std::io::Error>(())
//! ```

mod input;
mod rx;
mod tx;
mod worker;

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::{MetricVisitor, State, Syscall};

use crate::counter::{Counter, HostErrors};
use crate::{ConfigInterrupt, DeviceType, Start, StartError, VirtioDevice, Worker};
pub use input::ConsoleInput;

/// The queue of buffers for what the guest reads.
const RX: u16 = 0;
/// The queue of what the guest writes.
const TX: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// The size of the window is known (5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;

type Output = Box<dyn Write + Send>;

/// What the device has done since it was made.
#[derive(Debug, Default)]
struct Counters {
    rx_bytes: Counter,
    tx_bytes: Counter,
    tx_dropped_bytes: Counter,
    host_errors: HostErrors,
}

/// A console with one port.
///
/// What the guest writes goes to a [`Write`]: it should not block, because that stops every worker on the same
/// thread; what it does not take (`WouldBlock` included) is dropped and counted. What the guest reads comes
/// from a [`ConsoleInput`].
pub struct Console {
    input: Option<Arc<ConsoleInput>>,
    /// Taken by the worker only, once a turn.
    output: Arc<Mutex<Output>>,
    window: ConsoleWindow,
    counters: Arc<Counters>,
}

impl Console {
    /// A console that writes to `output` and reads from `input`, if there is one.
    pub fn new(input: Option<ConsoleInput>, output: Box<dyn Write + Send>) -> Self {
        Self {
            input: input.map(Arc::new),
            output: Arc::new(Mutex::new(output)),
            window: ConsoleWindow::default(),
            counters: Arc::default(),
        }
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

/// The window in which the console is shown, as the guest knows it (`VIRTIO_CONSOLE_F_SIZE`). Until it is set
/// its size is 0 by 0: unknown.
#[derive(Clone, Debug, Default)]
pub struct ConsoleWindow(Arc<Window>);

#[derive(Debug, Default)]
struct Window {
    /// Columns in the lower half, rows in the upper, as in configuration space.
    size: AtomicU32,
    /// Tells a driver that runs.
    changed: Mutex<Option<ConfigInterrupt>>,
}

impl ConsoleWindow {
    /// Sets the size in characters, and tells the guest.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.size.store(u32::from(columns) | u32::from(rows) << 16, Ordering::Relaxed);
        // Not raised under our lock: it may take the transport's, under which the device is started.
        let interrupt = self.0.changed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(interrupt) = interrupt {
            interrupt.raise();
        }
    }

    fn connect(&self, interrupt: Option<ConfigInterrupt>) {
        *self.0.changed.lock().unwrap_or_else(PoisonError::into_inner) = interrupt;
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> DeviceType {
        DeviceType::CONSOLE
    }

    fn features(&self) -> u64 {
        1 << VIRTIO_CONSOLE_F_SIZE
    }

    fn queues(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![RX, TX]]
    }

    fn config_len(&self) -> u32 {
        // `cols` and `rows`; the fields after them belong to features that are not offered.
        4
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&self.window.0.size.load(Ordering::Relaxed).to_le_bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Only `emerg_wr` could be written, and EMERG_WRITE is not offered.
    }

    fn start(&mut self, _group: usize, start: Start) -> Result<Box<dyn Worker>, StartError> {
        self.window.connect(Some(start.config.clone()));
        Ok(worker::start(self, start))
    }

    fn reset(&mut self) {
        self.window.connect(None);
        self.counters.host_errors.reset();
    }

    fn state(&self) -> State {
        State::Stateless
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // `write` is what an output on a descriptor does; another kind of output adds its own.
        &[Syscall("poll"), Syscall("readv"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        let Counters { rx_bytes, tx_bytes, tx_dropped_bytes, host_errors } = &*self.counters;
        visitor.counter("rx_bytes", rx_bytes.get());
        visitor.counter("tx_bytes", tx_bytes.get());
        visitor.counter("tx_dropped_bytes", tx_dropped_bytes.get());
        visitor.counter("host_errors", host_errors.get());
    }
}

#[cfg(test)]
mod tests;
