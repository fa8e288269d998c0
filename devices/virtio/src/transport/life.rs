//! The life of a device and its queues, as driver and machine want it. A queue runs if its driver has enabled it and is
//! ready itself, and the machine is not quiet.

use ossature_bus::DeviceError;

use super::core::{Core, Queue};
use crate::{Activation, QueueSetup, QueueState};

impl Core {
    /// Has all queues run that should. If one does not, none does.
    pub(super) fn start(&mut self) -> Result<(), DeviceError> {
        let started = self.start_all();
        if started.is_err() {
            // The first error is the one to tell.
            let _ = self.stop_all();
        }
        started
    }

    fn start_all(&mut self) -> Result<(), DeviceError> {
        let features = self.features.negotiated().unwrap_or_default();
        if !self.active {
            let activation = Activation { features, dma: self.dma(), ..self.activation.clone() };
            self.call(|device| device.activate(activation))?;
            self.active = true;
        }
        for index in 0..self.queues.len() {
            let Some(Queue { max, state, running: false }) = self.queues.get(index).cloned() else {
                continue;
            };
            if !state.ready {
                continue;
            }
            let missing = || DeviceError::new(format!("queue {index} is connected to nothing"));
            let doorbell = self.wires.doorbells.get(index).cloned().ok_or_else(missing)?;
            let interrupt = self.wires.interrupts.get(index).cloned().ok_or_else(missing)?;
            let setup = QueueSetup::new(index as u16, state, self.dma(), doorbell, interrupt)
                .with_max_size(max)
                .with_features(features);
            let started = self.call(|device| device.start_queue(setup));
            started.map_err(|e| e.context(format_args!("queue {index} cannot start")))?;
            if let Some(queue) = self.queues.get_mut(index) {
                queue.running = true;
            }
        }
        Ok(())
    }

    /// Stops a queue if it runs. Where the device cannot, the queue is lost.
    pub(super) fn stop_queue(&mut self, index: u16) -> Result<(), DeviceError> {
        let at = usize::from(index);
        if !self.queues.get(at).is_some_and(|queue| queue.running) {
            return Ok(());
        }
        let stopped = self.call(|device| device.stop_queue(index));
        let Some(queue) = self.queues.get_mut(at) else { return Ok(()) };
        queue.running = false;
        queue.state = match &stopped {
            Ok(QueueState { ready: true, next_avail, next_used, .. }) => {
                QueueState { next_avail: *next_avail, next_used: *next_used, ..queue.state }
            }
            _ => queue.state.lost(),
        };
        stopped.map(drop).map_err(|e| e.context(format_args!("queue {index} cannot stop")))
    }

    /// Stops all queues. The first error is told.
    fn stop_all(&mut self) -> Result<(), DeviceError> {
        let mut result = Ok(());
        for index in 0..self.queues.len() {
            result = result.and(self.stop_queue(index as u16));
        }
        result
    }

    /// Back to the state before any driver came.
    pub(super) fn reset(&mut self) -> Result<(), DeviceError> {
        let stopped = self.stop_all();
        let reset = self.call(|device| {
            device.reset();
            Ok(())
        });
        self.forget_driver();
        stopped.and(reset)
    }

    /// Stops all queues, and has the device give up what it holds.
    pub(super) fn quiesce(&mut self) -> Result<(), DeviceError> {
        if self.quiet {
            return Ok(());
        }
        let stopped = self.stop_all();
        self.quiet = true;
        stopped.and(self.call(|device| device.quiesce()))
    }

    /// Goes on. If that fails, it is quiet as before. Returns true if queues run that did not.
    pub(super) fn resume(&mut self) -> Result<bool, DeviceError> {
        if !self.quiet {
            return Ok(false);
        }
        self.call(|device| device.resume())?;
        self.quiet = false;
        if !self.runs() {
            return Ok(false);
        }
        let started = self.start();
        if started.is_err() {
            // As above.
            let _ = self.quiesce();
        }
        started.map(|()| true)
    }
}
