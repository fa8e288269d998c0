//! What the device, its workers and its handles have in common.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ossature_block::{Disk, DiskError};

use super::handle::Control;
use super::held::Held;
use super::limits::SECTOR;
use crate::ConfigInterrupt;
use crate::counter::HostErrors;

#[derive(Debug)]
pub(super) struct Shared<D> {
    pub disk: Arc<D>,
    /// Sectors that the driver may use.
    sectors: AtomicU64,
    /// Writes may stay in the host's cache until a flush.
    writeback: AtomicBool,
    pub host_errors: HostErrors,
    /// Requests that wait for the host to be in order again.
    pub held: Held,
    /// To tell the driver that the size has changed, while there is one. Locked during a change of the size.
    config: Mutex<Option<ConfigInterrupt>>,
}

impl<D: Disk> Shared<D> {
    pub fn new(disk: D) -> Self {
        let sectors = AtomicU64::new(disk.capacity() / SECTOR);
        Self {
            disk: Arc::new(disk),
            sectors,
            writeback: AtomicBool::new(true),
            host_errors: HostErrors::default(),
            held: Held::default(),
            config: Mutex::new(None),
        }
    }

    #[inline]
    pub fn sectors(&self) -> u64 {
        self.sectors.load(Ordering::Relaxed)
    }

    #[inline]
    pub fn writeback(&self) -> bool {
        self.writeback.load(Ordering::Relaxed)
    }

    pub fn set_writeback(&self, writeback: bool) {
        self.writeback.store(writeback, Ordering::Relaxed);
    }

    /// A driver is there, or none.
    pub fn set_config(&self, config: Option<ConfigInterrupt>) {
        *self.config() = config;
    }

    fn config(&self) -> MutexGuard<'_, Option<ConfigInterrupt>> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<D: Disk> Control for Shared<D> {
    fn resize(&self, bytes: u64) -> Result<(), DiskError> {
        let config = self.config();
        let (before, sectors) = (self.sectors(), bytes / SECTOR);
        // No request reaches beyond the end, whatever comes first.
        if sectors < before {
            self.sectors.store(sectors, Ordering::Relaxed);
        }
        let resized = self.disk.resize(bytes);
        self.sectors.store(self.disk.capacity() / SECTOR, Ordering::Relaxed);
        let interrupt = config.clone();
        // The transport asks the device for its configuration, which takes locks of its own.
        drop(config);
        resized?;
        if let Some(interrupt) = interrupt.filter(|_| self.sectors() != before) {
            interrupt.raise();
        }
        Ok(())
    }

    fn capacity(&self) -> u64 {
        self.sectors() * SECTOR
    }
}
