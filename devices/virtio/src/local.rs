//! A device whose queues are served here, by workers.

use std::sync::Arc;

use ossature_bus::state::StateError;
use ossature_bus::{DeviceError, DeviceState, Handover, Identity, MetricVisitor, Syscall};

use crate::{
    Activation, DeviceInfo, QueueSetup, QueueState, Runtime, VirtQueue, VirtioDevice, Worker, WorkerHandle,
};

/// What the author of a device writes: what it is, and which workers serve its queues. [`Local`] makes it a
/// [`VirtioDevice`].
///
/// All of it belongs to the control plane; the data plane is the [`Worker`].
pub trait LocalDevice: Send {
    /// What it says about itself.
    fn info(&self) -> DeviceInfo;
    /// The queues that are served by one worker, for each worker. Constant.
    fn groups(&self) -> Vec<Vec<u16>>;
    /// Reads configuration space; the transport has checked the bounds.
    fn read_config(&self, offset: u32, buf: &mut [u8]);
    /// Writes configuration space; the transport has checked the bounds.
    fn write_config(&mut self, offset: u32, data: &[u8]);
    /// Makes the worker of a group, which gets its queues afterwards, one by one. Called each time the first queue of a
    /// group starts; the worker is dropped when the last one has stopped.
    fn worker(&mut self, group: usize, activation: &Activation) -> Result<Box<dyn Worker>, DeviceError>;
    /// See [`VirtioDevice::forget_queue`]. No worker has the queue.
    fn forget_queue(&mut self, index: u16);
    /// See [`VirtioDevice::quiesce`].
    fn quiesce(&mut self) -> Result<(), DeviceError>;
    /// See [`VirtioDevice::resume`].
    fn resume(&mut self) -> Result<(), DeviceError>;
    /// Back to the state before any driver came. There is no worker.
    fn reset(&mut self);
    /// Its state, if it has one of its own; there is no worker.
    fn save(&mut self) -> Result<DeviceState, DeviceError>;
    /// See [`VirtioDevice::restore`]; there is no worker.
    fn restore(&mut self, handover: Handover) -> Result<(), StateError>;
    /// The system calls that it and its workers make once they run.
    fn syscalls(&self) -> &'static [Syscall];
    /// Shows its counters.
    fn metrics(&self, visitor: &mut dyn MetricVisitor);
    /// See [`VirtioDevice::identities`].
    fn identities(&self) -> Vec<Identity> {
        Vec::new()
    }
}

/// A [`LocalDevice`] with the runtime that hosts its workers.
pub struct Local {
    name: String,
    device: Box<dyn LocalDevice>,
    runtime: Arc<dyn Runtime>,
    /// For each queue, the group that it is in.
    groups: Vec<Option<usize>>,
    activation: Option<Activation>,
    workers: Vec<Running>,
}

/// A worker with the queues that it has, as they started.
struct Running {
    group: usize,
    queues: Vec<(u16, QueueState)>,
    handle: Box<dyn WorkerHandle>,
}

impl Local {
    /// `device` with workers on `runtime`, whose threads, if it makes some, are named after `name`.
    pub fn new(name: impl Into<String>, device: Box<dyn LocalDevice>, runtime: Arc<dyn Runtime>) -> Self {
        let members = device.groups();
        let group_of = |queue| members.iter().position(|group| group.contains(&queue));
        let groups = (0..).zip(&device.info().queues).map(|(queue, _)| group_of(queue)).collect();
        Self { name: name.into(), device, runtime, groups, activation: None, workers: Vec::new() }
    }

    /// Makes the worker of a group run.
    fn run(&mut self, group: usize) -> Result<&mut Running, DeviceError> {
        let Some(activation) = &self.activation else {
            return Err(DeviceError::new("a queue was started before the device was activated"));
        };
        let name = format!("{}.{group}", self.name);
        let failed = |e: DeviceError| e.context(format_args!("the worker of queue group {group}"));
        let worker = self.device.worker(group, activation).map_err(failed)?;
        let sink = activation.failure.clone();
        let handle =
            self.runtime.spawn(&name, worker, Box::new(move |why| sink.report(why))).map_err(failed)?;
        self.workers.push(Running { group, queues: Vec::new(), handle });
        self.workers.last_mut().ok_or_else(|| DeviceError::new("no worker"))
    }
}

impl std::fmt::Debug for Local {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Local").field("name", &self.name).finish_non_exhaustive()
    }
}

impl VirtioDevice for Local {
    fn info(&self) -> DeviceInfo {
        self.device.info()
    }

    fn read_config(&self, offset: u32, buf: &mut [u8]) {
        self.device.read_config(offset, buf);
    }

    fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.device.write_config(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.activation = Some(activation);
        Ok(())
    }

    fn start_queue(&mut self, setup: QueueSetup) -> Result<(), DeviceError> {
        let (index, state) = (setup.index, setup.state);
        let Some(Some(group)) = self.groups.get(usize::from(index)).copied() else {
            return Err(DeviceError::new(format!("no worker serves queue {index}")));
        };
        let queue = setup.build().map_err(|e| DeviceError::new(e.to_string()))?;
        let known = self.workers.iter().position(|running| running.group == group);
        let running = match known.and_then(|at| self.workers.get_mut(at)) {
            Some(running) => running,
            None => self.run(group)?,
        };
        let added = running.handle.add_queue(queue);
        match added {
            Ok(()) => running.queues.push((index, state)),
            Err(_) => self.workers.retain(|running| !running.queues.is_empty()),
        }
        added.map_err(|e| e.context(format_args!("queue {index}")))
    }

    fn stop_queue(&mut self, index: u16) -> Result<QueueState, DeviceError> {
        let runs = |running: &Running| running.queues.iter().position(|(other, _)| *other == index);
        let found = self.workers.iter_mut().find_map(|running| Some((runs(running)?, running)));
        let Some((at, running)) = found else {
            return Err(DeviceError::new(format!("queue {index} does not run")));
        };
        let (_, started) = running.queues.swap_remove(at);
        let queue = running.handle.remove_queue(index);
        self.workers.retain(|running| !running.queues.is_empty());
        Ok(queue.map_or(started.lost(), VirtQueue::into_state))
    }

    fn forget_queue(&mut self, index: u16) {
        self.device.forget_queue(index);
    }

    fn quiesce(&mut self) -> Result<(), DeviceError> {
        self.device.quiesce()
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        let mut members = self.device.groups().concat();
        members.sort_unstable();
        let queues = self.groups.len();
        if !members.iter().map(|&queue| usize::from(queue)).eq(0..queues) {
            let reason = format!("each of {queues} queues has to be in one group, they are {members:?}");
            return Err(DeviceError::new(reason));
        }
        self.device.resume()
    }

    fn reset(&mut self) {
        self.workers.clear();
        self.activation = None;
        self.device.reset();
    }

    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        self.device.save()
    }

    fn restore(&mut self, handover: Handover) -> Result<(), StateError> {
        self.device.restore(handover)?;
        self.activation = None;
        Ok(())
    }

    fn syscalls(&self) -> &'static [Syscall] {
        self.device.syscalls()
    }

    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        self.device.metrics(visitor);
    }

    fn identities(&self) -> Vec<Identity> {
        self.device.identities()
    }
}
