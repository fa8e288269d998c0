//! What the guest reads of the transport: kept up to date under the core's lock, read without it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use ossature_bus::{Access, BusFault};

use super::super::View;
use super::super::core::Core;
use super::super::status::DRIVER_OK;
use super::layout::COMMON_LEN;
use super::signals::Signals;
use crate::DeviceInfo;

/// Offsets in the common configuration (4.1.4.3).
pub(super) mod reg {
    pub(crate) const OFFERED_SELECT: u64 = 0;
    pub(crate) const OFFERED: u64 = 4;
    pub(crate) const ACCEPTED_SELECT: u64 = 8;
    pub(crate) const ACCEPTED: u64 = 12;
    pub(crate) const CONFIG_VECTOR: u64 = 16;
    pub(crate) const QUEUES: u64 = 18;
    pub(crate) const STATUS: u64 = 20;
    pub(crate) const GENERATION: u64 = 21;
    pub(crate) const QUEUE_SELECT: u64 = 22;
    pub(crate) const QUEUE_SIZE: u64 = 24;
    pub(crate) const QUEUE_VECTOR: u64 = 26;
    pub(crate) const QUEUE_ENABLE: u64 = 28;
    pub(crate) const QUEUE_NOTIFY: u64 = 30;
    pub(crate) const QUEUE_DESC: u64 = 32;
    pub(crate) const QUEUE_AVAIL: u64 = 40;
    pub(crate) const QUEUE_USED: u64 = 48;
    pub(crate) const QUEUE_NOTIFY_DATA: u64 = 56;
    pub(crate) const QUEUE_RESET: u64 = 58;
}

/// What is read, and how the driver is interrupted.
pub(super) struct Registers {
    signals: Signals,
    queues: u16,
    shown: Mutex<Shown>,
}

struct Shown {
    common: [u8; COMMON_LEN as usize],
    config: Vec<u8>,
}

impl Shown {
    fn set(&mut self, register: u64, value: &[u8]) {
        self.common.iter_mut().skip(register as usize).zip(value).for_each(|(to, from)| *to = *from);
    }
}

impl Registers {
    pub(super) fn new(info: &DeviceInfo, signals: Signals) -> Self {
        let config = vec![0; info.config_len as usize];
        let shown = Mutex::new(Shown { common: [0; COMMON_LEN as usize], config });
        // The transport has checked that there are not more.
        Self { signals, queues: info.queues.len() as u16, shown }
    }

    pub(super) fn signals(&self) -> &Signals {
        &self.signals
    }

    /// Held for no longer than to copy some bytes.
    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reads the common configuration, in any width.
    pub(super) fn common(&self, at: Access) -> Result<u64, BusFault> {
        read(&self.shown().common, at)
    }

    /// Reads the device's configuration space.
    pub(super) fn config(&self, at: Access) -> Result<u64, BusFault> {
        read(&self.shown().config, at)
    }

    /// Another vCPU sees a queue on its way to being reset.
    pub(super) fn show_resetting(&self) {
        self.shown().set(reg::QUEUE_RESET, &1u16.to_le_bytes());
    }
}

/// Fails unless an access is aligned and within `len` bytes.
pub(super) fn check(at: Access, len: u64) -> Result<(), BusFault> {
    match at.offset.checked_add(at.size.bytes()) {
        _ if at.offset >= len => Err(BusFault::Unmapped),
        _ if !at.offset.is_multiple_of(at.size.bytes()) => Err(BusFault::Alignment),
        Some(end) if end <= len => Ok(()),
        _ => Err(BusFault::Crosses),
    }
}

fn read(bytes: &[u8], at: Access) -> Result<u64, BusFault> {
    check(at, bytes.len() as u64)?;
    let read = bytes.iter().skip(at.offset as usize).take(at.size.bytes() as usize);
    Ok(read.rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
}

impl View for std::sync::Arc<Registers> {
    fn show(&self, core: &Core) {
        if core.status & DRIVER_OK == 0 {
            // Nobody has anything to tell a driver that is not ready.
            self.signals.acknowledge();
        }
        let features = &core.features;
        let queue = core.queue();
        let state = queue.map(|queue| queue.state);
        let u16_of = |value: Option<u16>| value.unwrap_or(0).to_le_bytes();
        let u64_of = |value: Option<u64>| value.unwrap_or(0).to_le_bytes();
        // The driver has written 16 bits.
        let selected = (core.selected as u16).to_le_bytes();
        let mut shown = self.shown();
        shown.set(reg::OFFERED_SELECT, &features.offered_select.to_le_bytes());
        shown.set(reg::OFFERED, &features.window().to_le_bytes());
        shown.set(reg::ACCEPTED_SELECT, &features.accepted_select.to_le_bytes());
        shown.set(reg::ACCEPTED, &features.accepted_window().to_le_bytes());
        shown.set(reg::CONFIG_VECTOR, &self.signals.config_vector().to_le_bytes());
        shown.set(reg::QUEUES, &self.queues.to_le_bytes());
        shown.set(reg::STATUS, &[core.status]);
        shown.set(reg::GENERATION, &[core.generation as u8]);
        shown.set(reg::QUEUE_SELECT, &selected);
        shown.set(reg::QUEUE_SIZE, &u16_of(state.map(|state| state.size)));
        shown.set(reg::QUEUE_VECTOR, &self.signals.queue_vector(core.selected).to_le_bytes());
        shown.set(reg::QUEUE_ENABLE, &u16_of(state.map(|state| state.ready.into())));
        shown.set(reg::QUEUE_NOTIFY, if queue.is_some() { &selected } else { &[0; 2] });
        shown.set(reg::QUEUE_DESC, &u64_of(state.map(|state| state.desc)));
        shown.set(reg::QUEUE_AVAIL, &u64_of(state.map(|state| state.avail)));
        shown.set(reg::QUEUE_USED, &u64_of(state.map(|state| state.used)));
        shown.set(reg::QUEUE_RESET, &[0; 2]);
        shown.config.clone_from(&core.config);
    }
}
