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

mod counters;
mod input;
mod rx;
mod tx;
mod window;
mod worker;

use std::fmt;
use std::io::Write;
use std::sync::{Arc, Mutex};

use ossature_bus::state::{Decoder, Encoder, Field, StateError};
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};

use self::counters::Counters;
use self::worker::{ConsoleWorker, Output};
use crate::{Activation, DeviceInfo, DeviceType, LocalDevice, Worker};
pub use input::ConsoleInput;
pub use window::ConsoleWindow;

/// The queue of buffers for what the guest reads.
const RX: u16 = 0;
/// The queue of what the guest writes.
const TX: u16 = 1;
const QUEUE_SIZES: [u16; 2] = [64, 64];
/// The size of the window is known (5.3.3).
const VIRTIO_CONSOLE_F_SIZE: u32 = 0;

/// The form in which a console is saved.
const KIND: &str = "ossature.virtio-console";
const VERSION: u16 = 1;
const WINDOW: Field = Field::new(1, "size of the window");

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

impl LocalDevice for Console {
    fn info(&self) -> DeviceInfo {
        // `cols` and `rows`; the fields after them belong to features that are not offered.
        let config_len = 4;
        DeviceInfo::new(DeviceType::CONSOLE, &QUEUE_SIZES)
            .with_features(1 << VIRTIO_CONSOLE_F_SIZE)
            .with_config(config_len)
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![vec![RX, TX]]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        crate::config::read(&self.window.size().to_le_bytes(), offset, buf);
    }

    fn write_config(&mut self, _offset: u32, _data: &[u8]) {
        // Only `emerg_wr` could be written, and EMERG_WRITE is not offered.
    }

    fn worker(&mut self, _group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        self.window.connect(Some(activation.config.clone()));
        let (output, counters) = (Arc::clone(&self.output), Arc::clone(&self.counters));
        Ok(Box::new(ConsoleWorker::new(self.input.clone(), output, counters, activation)))
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {
        self.window.connect(None);
        self.counters.host_errors.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u32(WINDOW, self.window.size());
        Ok(DeviceState::Saved(Handover::new(fields.finish())))
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        let mut fields = Decoder::new(&handover.state, KIND, 1..=VERSION)?;
        let size = fields.u32(WINDOW)?;
        fields.finish()?;
        // Whoever shows it here may say otherwise once the guest runs.
        self.window.set_size(size);
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        // `write` is what an output on a descriptor does; another kind of output adds its own.
        &[Syscall("poll"), Syscall("readv"), Syscall("write")]
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.counters.show(visitor);
    }
}

#[cfg(test)]
mod tests;
