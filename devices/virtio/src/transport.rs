//! What all virtio transports share: status, negotiation, queue registers, and the life of the workers.
//! A transport itself only decodes registers over it.

mod core;
pub(crate) mod features;
mod mail;
pub(crate) mod mmio;
pub(crate) mod status;
#[cfg(test)]
mod tests;

use std::sync::atomic::{Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};

use ossature_bus::{DeviceError, DeviceEvent, EventSink};

use self::core::{ByGroup, Core, Group, Phase, Todo};
use self::mail::{Letter, Mailbox};
use crate::{ConfigInterrupt, QueueBroken, Runtime, RuntimeError, VirtQueue, WorkerHandle};

/// What the guest reads: brought up to date under the core's lock after every change.
pub(crate) trait View: Send + Sync {
    /// Shows `core`.
    fn show(&self, core: &Core);
}

/// A virtio device behind some transport.
///
/// The core's lock belongs to the control plane. Nobody waits while holding it, and workers never wait for
/// it: they leave a letter, which whoever holds the lock reads before it leaves.
pub(crate) struct Transport<V> {
    name: String,
    core: Mutex<Core>,
    mail: Mailbox,
    view: V,
    runtime: Arc<dyn Runtime>,
    events: EventSink,
    this: Weak<Self>,
}

impl<V: View + 'static> Transport<V> {
    pub(crate) fn new(
        name: &str,
        core: Core,
        view: V,
        runtime: Arc<dyn Runtime>,
        events: EventSink,
    ) -> Arc<Self> {
        let transport = Arc::new_cyclic(|this| Self {
            name: name.to_owned(),
            core: Mutex::new(core),
            mail: Mailbox::default(),
            view,
            runtime,
            events,
            this: this.clone(),
        });
        transport.with(Core::refresh);
        transport
    }

    pub(crate) fn view(&self) -> &V {
        &self.view
    }

    /// Runs `f` on the core, reads the mail, and shows the guest what has become of it.
    pub(crate) fn with<R>(&self, f: impl FnOnce(&mut Core) -> R) -> R {
        let mut core = self.core.lock().unwrap_or_else(PoisonError::into_inner);
        let result = f(&mut core);
        self.settle(core);
        result
    }

    /// Leaves a letter; never waits.
    fn post(&self, letter: Letter) {
        self.mail.post(letter);
        // Either we get the lock, or its holder sees the letter after it has let go: see `settle`.
        fence(Ordering::SeqCst);
        match self.core.try_lock() {
            Ok(core) => self.settle(core),
            Err(TryLockError::Poisoned(core)) => self.settle(core.into_inner()),
            Err(TryLockError::WouldBlock) => {}
        }
    }

    fn settle<'a>(&'a self, mut core: MutexGuard<'a, Core>) {
        loop {
            let letter = self.mail.take();
            let reason = core.read_mail(letter);
            self.view.show(&core);
            // After the guest can read why.
            core.raise();
            drop(core);
            if let Some(reason) = reason {
                self.events.report(DeviceEvent::NeedsReset { reason });
            }
            fence(Ordering::SeqCst);
            if self.mail.is_empty() {
                return;
            }
            core = match self.core.try_lock() {
                Ok(core) => core,
                Err(TryLockError::Poisoned(core)) => core.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
        }
    }

    /// The driver writes the status register.
    pub(crate) fn write_status(&self, value: u8) {
        match self.with(|core| core.write_status(value)) {
            Todo::Nothing => {}
            Todo::Start => {
                // Failures have been turned into DEVICE_NEEDS_RESET.
                let _ = self.start();
            }
            Todo::Reset(groups) => {
                let stopped = stop(groups);
                self.finish_reset();
                if let Err(DeviceError { reason, .. }) = stopped {
                    self.events.report(DeviceEvent::HostError { reason });
                }
            }
        }
    }

    /// Back to the state before any driver came.
    pub(crate) fn reset(&self) -> Result<(), DeviceError> {
        let stopped = stop(self.with(Core::begin_reset));
        self.finish_reset();
        stopped.map(drop)
    }

    fn finish_reset(&self) {
        self.with(|core| {
            // From workers that are no more.
            drop(self.mail.take());
            core.reset();
        });
    }

    /// Stops all workers; the queues stay here.
    pub(crate) fn quiesce(&self) -> Result<(), DeviceError> {
        let Some(groups) = self.with(Core::begin_quiesce) else {
            return Ok(());
        };
        let stopped = stop(groups);
        let (queues, lost) = match stopped {
            Ok(queues) => (queues, Ok(())),
            Err(e) => (Vec::new(), Err(e)),
        };
        self.with(|core| core.set_phase(Phase::Quiet(queues)));
        lost
    }

    /// Starts all workers again with the queues that they had.
    pub(crate) fn resume(&self) -> Result<(), DeviceError> {
        if self.with(Core::begin_resume) { self.start() } else { Ok(()) }
    }

    /// Gives every group that has queues its worker. The core is in [`Phase::Changing`] meanwhile: whatever
    /// else the guest writes is dropped.
    fn start(&self) -> Result<(), DeviceError> {
        let this = self.this.clone();
        let config = ConfigInterrupt::new(move || {
            if let Some(transport) = this.upgrade() {
                transport.post(Letter { config: true, ..Letter::default() });
            }
        });
        let running = self.with(|core| core.start_groups(&config)).and_then(|workers| {
            let mut running = Vec::with_capacity(workers.len());
            for (group, worker) in workers {
                let this = self.this.clone();
                let broken = Box::new(move |why: QueueBroken| {
                    if let Some(transport) = this.upgrade() {
                        transport.post(Letter { broken: Some(why.to_string()), ..Letter::default() });
                    }
                });
                let name = format!("{}.{group}", self.name);
                let handle = self.runtime.spawn(&name, worker, broken).map_err(
                    |RuntimeError { reason, source }| DeviceError {
                        reason: format!("{name} cannot run: {reason}"),
                        source,
                    },
                )?;
                running.push(Group { group, handle });
            }
            Ok(running)
        });
        match running {
            Ok(running) => {
                self.with(|core| core.started(running));
                Ok(())
            }
            Err(e) => {
                let reason = e.reason.clone();
                self.mail.post(Letter { broken: Some(reason), ..Letter::default() });
                self.with(|core| core.started(Vec::new()));
                Err(e)
            }
        }
    }
}

/// Stops workers and takes their queues back, group by group. No lock is held: a worker may be in a turn.
fn stop(groups: Vec<Group>) -> Result<ByGroup<Vec<VirtQueue>>, DeviceError> {
    let mut queues = Vec::with_capacity(groups.len());
    let mut lost = None;
    for Group { group, handle } in groups {
        match WorkerHandle::stop(handle) {
            Some(worker) => queues.push((group, worker.finish())),
            None => lost = Some(group),
        }
    }
    match lost {
        None => Ok(queues),
        Some(group) => {
            Err(DeviceError { reason: format!("the worker of queue group {group} is lost"), source: None })
        }
    }
}
