//! The control plane of a device whose data plane is a [`QueueHandler`].

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, Handover, MetricVisitor, Syscall};
use ossature_virtio::{Activation, DeviceInfo, LocalDevice, Worker};

use super::{QueueHandler, QueueWorker};

/// A device whose configuration space is constant and that has no state beyond its queues, which the transport saves.
/// One that has more implements [`LocalDevice`] itself, and makes [`QueueWorker`]s.
///
/// All queues are served by one worker, so that a handler has all of them at hand.
#[derive(Debug)]
pub struct QueueDevice<F> {
    info: DeviceInfo,
    config: Vec<u8>,
    syscalls: &'static [Syscall],
    handler: F,
}

impl<F, H> QueueDevice<F>
where
    F: FnMut(&Activation) -> Result<H, DeviceError> + Send,
    H: QueueHandler + 'static,
{
    /// What `info` says, without configuration space, and with a handler that `handler` makes each time a driver has
    /// started the device.
    pub fn new(info: DeviceInfo, handler: F) -> Self {
        Self { info: info.with_config(0), config: Vec::new(), syscalls: &[Syscall("write")], handler }
    }

    /// The same with this configuration space.
    #[must_use]
    pub fn with_config(mut self, config: &[u8]) -> Self {
        self.info = self.info.with_config(config.len() as u32);
        self.config = config.to_vec();
        self
    }

    /// The same, with a handler that makes these system calls; `write` is among them, for the interrupts.
    #[must_use]
    pub fn with_syscalls(mut self, syscalls: &'static [Syscall]) -> Self {
        self.syscalls = syscalls;
        self
    }
}

impl<F, H> LocalDevice for QueueDevice<F>
where
    F: FnMut(&Activation) -> Result<H, DeviceError> + Send,
    H: QueueHandler + 'static,
{
    fn info(&self) -> DeviceInfo {
        self.info.clone()
    }

    fn groups(&self) -> Vec<Vec<u16>> {
        vec![(0..).zip(&self.info.queues).map(|(index, _)| index).collect()]
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        let bytes = self.config.get(offset as usize..).unwrap_or_default();
        for (to, from) in buf.iter_mut().zip(bytes) {
            *to = *from;
        }
    }

    fn write_config(&mut self, _: u32, _: &[u8]) {}

    fn worker(&mut self, _: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError> {
        Ok(Box::new(QueueWorker::new((self.handler)(activation)?, activation)))
    }

    fn forget_queue(&mut self, _: u16) {}

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn reset(&mut self) {}

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        Ok(DeviceState::Stateless)
    }

    fn restore(&mut self, _: Handover) -> Result<(), StateError> {
        Err(StateError::Unsupported { reason: "the device has no state beyond its queues" })
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.syscalls
    }

    fn metrics(&self, _: &mut dyn MetricVisitor) {}
}
