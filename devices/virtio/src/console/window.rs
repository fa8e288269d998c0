//! The window in which a console is shown.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ossature_bus::Event;

use crate::ConfigInterrupt;

/// The window in which the console is shown, as the guest knows it (`VIRTIO_CONSOLE_F_SIZE`). Until it is set
/// its size is 0 by 0: unknown.
#[derive(Clone, Debug, Default)]
pub struct ConsoleWindow(Arc<Window>);

#[derive(Debug, Default)]
struct Window {
    /// Columns in the lower half, rows in the upper, as in configuration space.
    size: AtomicU32,
    /// Tells a driver that runs.
    changed: Mutex<Option<Changed>>,
}

/// How a driver is told of another size: by a change of configuration space, and with the control queues by a message,
/// which the worker sends.
#[derive(Clone, Debug)]
pub(super) struct Changed {
    pub(super) config: ConfigInterrupt,
    pub(super) worker: Arc<Event>,
}

impl ConsoleWindow {
    /// Sets the size in characters, and tells the guest.
    pub fn resize(&self, columns: u16, rows: u16) {
        self.0.size.store(u32::from(columns) | u32::from(rows) << 16, Ordering::Relaxed);
        // Not raised under our lock: it may take the transport's, under which the device is started.
        let changed = self.0.changed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(Changed { config, worker }) = changed {
            config.raise();
            // An event whose count is full wakes as well.
            let _ = worker.signal();
        }
    }

    /// The size as configuration space has it.
    pub(super) fn size(&self) -> u32 {
        self.0.size.load(Ordering::Relaxed)
    }

    /// Sets the size as configuration space has it, and does not tell the driver.
    pub(super) fn set_size(&self, size: u32) {
        self.0.size.store(size, Ordering::Relaxed);
    }

    /// Tells a driver of changes from now on, or none.
    pub(super) fn connect(&self, changed: Option<Changed>) {
        *self.0.changed.lock().unwrap_or_else(PoisonError::into_inner) = changed;
    }
}
