//! Control of a machine from other threads: any number of them wait for it, stop it, pause it, watch it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use ossature_bus::{Device, EventLoop, Metric, Syscall};

use super::LifecycleState;
use super::control::Shared;
use super::error::LifecycleError;
use super::events::EventStream;
use super::outcome::Outcome;
use super::snapshot::{MemoryProgress, Pager, WorkingSet};
use super::status::Woken;
use crate::GuestDirtyLog;

/// How often is looked whether memory has come.
const PREFETCH_LOOK: Duration = Duration::from_millis(1);

/// A handle on a machine, for any thread. It controls the machine as [`Machine`](super::Machine) does, but does not
/// start it, and dropping it does not end it. Cheap to clone. A handle that outlives its machine reports that the
/// machine is gone.
///
/// Control happens on the calling thread, one operation at a time. Devices, vCPU threads, and handlers on an event loop
/// that runs the machine's workers must not wait for a vCPU: they call [`stop`](Self::stop) and
/// [`request_pause`](Self::request_pause), which do not wait.
#[derive(Clone)]
pub struct MachineHandle {
    pub(super) shared: Arc<Shared>,
}

impl fmt::Debug for MachineHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MachineHandle").field("outcome", &self.outcome()).finish_non_exhaustive()
    }
}

impl MachineHandle {
    /// Where the machine is in its life. A running machine may stop by itself at any time.
    pub fn state(&self) -> LifecycleState {
        self.shared.status.lifecycle()
    }

    /// A new follower of what happens to the machine, from its beginning.
    pub fn events(&self) -> EventStream {
        self.shared.status.events.stream()
    }

    /// How the machine ended, if it has.
    pub fn outcome(&self) -> Option<Outcome> {
        self.shared.status.outcome()
    }

    /// Returns true if the guest's kernel has reported a panic since it started.
    pub fn guest_panicked(&self) -> bool {
        self.shared.status.guest_panicked()
    }

    /// Asks the machine to stop; returns at once. [`wait`](Self::wait) tells when it has. A machine that is stopped
    /// before it has started does not start.
    pub fn stop(&self) {
        self.shared.status.end(Outcome::Stopped);
    }

    /// Asks the machine to pause; returns at once. Its vCPUs pause as soon as they can; its devices are paused by the
    /// thread that [waits](Self::wait) for the machine, or controls it next. [`MachineEvent::Paused`] tells when it
    /// has.
    ///
    /// [`MachineEvent::Paused`]: super::MachineEvent::Paused
    pub fn request_pause(&self) {
        self.shared.status.request(|requests| requests.pause = true);
    }

    /// Waits until the machine ends, then until its threads are gone and its devices have finished what they had begun.
    /// Any number of threads may wait. Meanwhile others pause and resume the machine, add devices, read metrics. A
    /// machine that was not started cannot be waited for.
    pub fn wait(&self) -> Result<Outcome, LifecycleError> {
        // Without a time-out there is always an outcome.
        Ok(self.wait_until(None)?.unwrap_or(Outcome::Stopped))
    }

    /// As [`wait`](Self::wait), but no longer than `timeout`: `None` if the machine has not ended by then.
    pub fn wait_timeout(&self, timeout: Duration) -> Result<Option<Outcome>, LifecycleError> {
        self.wait_until(Instant::now().checked_add(timeout))
    }

    fn wait_until(&self, deadline: Option<Instant>) -> Result<Option<Outcome>, LifecycleError> {
        self.expect_started()?;
        loop {
            match self.shared.status.wait(deadline) {
                Woken::Ended(outcome) => return self.finish(outcome).map(Some),
                Woken::Asked => self.shared.control("wait for", |_| Ok(()))?,
                Woken::TimedOut => return Ok(None),
            }
        }
    }

    /// As [`wait`](Self::wait), and runs `event_loop` on this thread meanwhile: for the devices that have their turns
    /// on it, and the VMM's own descriptors. A [stop](EventLoop::stop) of the loop by another thread does not end the
    /// wait. One thread at a time runs a loop: for other machines whose devices are on it, call [`wait`](Self::wait).
    pub fn wait_on(&self, event_loop: &EventLoop) -> Result<Outcome, LifecycleError> {
        self.expect_started()?;
        loop {
            let woken = self.shared.status.run(event_loop);
            match woken.map_err(|source| LifecycleError::EventLoop { source })? {
                Woken::Ended(outcome) => return self.finish(outcome),
                Woken::Asked => self.shared.control("wait for", |_| Ok(()))?,
                Woken::TimedOut => {}
            }
        }
    }

    fn expect_started(&self) -> Result<(), LifecycleError> {
        match self.state() {
            state @ LifecycleState::Created => Err(LifecycleError::Illegal { call: "wait for", state }),
            _ => Ok(()),
        }
    }

    fn finish(&self, outcome: Outcome) -> Result<Outcome, LifecycleError> {
        match self.shared.control("wait for", |control| control.finish()) {
            // Its owner has given it back: there is nothing left to finish.
            Ok(()) | Err(LifecycleError::Gone { .. }) => Ok(outcome),
            // A device that has panicked may well do so again.
            Err(_) if matches!(outcome, Outcome::Panicked { .. }) => Ok(outcome),
            Err(error) => Err(error),
        }
    }

    /// Resumes the machine after a pause that was [kept](super::Paused::keep) or [requested](Self::request_pause). If a
    /// device cannot resume, the machine stays paused.
    pub fn resume(&self) -> Result<(), LifecycleError> {
        self.shared.control("resume", |control| control.resume())
    }

    /// Resets the machine in place: devices, vCPUs, interrupt controllers and memory are as they were before the start,
    /// the payload is loaded again, and the same virtual machine goes on, or stays paused if it was. On an error the
    /// machine is paused.
    pub fn reset(&self) -> Result<(), LifecycleError> {
        self.shared.control("reset", |control| control.reset_and_go_on())
    }

    /// Adds a device, beside those that are there, which keep their places. The guest is not told, unless the device
    /// itself tells it.
    pub fn add_device(&self, device: impl Device + 'static) -> Result<(), LifecycleError> {
        self.shared.control("add a device to", |control| control.add_device(Box::new(device)))
    }

    /// Removes the device `id` and returns it, detached. From then on, the guest's accesses reach no device.
    pub fn remove_device(&self, id: &str) -> Result<Box<dyn Device>, LifecycleError> {
        self.shared.control("remove a device of", |control| control.remove_device(id))
    }

    /// Puts a device in the place of the one of the same id, which asks for the same things: it takes over its state,
    /// its registers and its interrupts, and the guest notices nothing. The old device comes back detached. On an error
    /// the old one goes on.
    pub fn replace_device(&self, device: impl Device + 'static) -> Result<Box<dyn Device>, LifecycleError> {
        self.shared.control("replace a device of", |control| control.replace_device(Box::new(device)))
    }

    /// Shows every metric of the machine as (scope, metric, value): the scope is a device's id, `machine`, or
    /// `kvm` or `vcpuN` for the hypervisor's own counters if the machine was built with
    /// [`statistics`](super::MachineBuilder::statistics). No device has an id that is one of the others. Shows nothing of
    /// a machine that is gone.
    ///
    /// ```
    /// use ossature_bus::MetricKind;
    /// use ossature_core::machine::Machine;
    /// use ossature_core::scripted::{Script, Scripted};
    ///
    /// let machine = Machine::builder("example").build(&Scripted::new([Script::new()]))?;
    /// machine.handle().metrics(&mut |scope, metric, value| {
    ///     let kind = if metric.kind == MetricKind::Counter { "counter" } else { "gauge" };
    ///     println!("# HELP {scope}_{} {}\n# TYPE {scope}_{} {kind}", metric.name, metric.help, metric.name);
    ///     println!("{scope}_{} {value}", metric.name);
    /// });
    /// # Ok::<(), ossature_core::machine::BuildErrors>(())
    /// ```
    pub fn metrics(&self, visit: &mut dyn FnMut(&str, &Metric<'_>, u64)) {
        if let Some(board) = self.shared.board() {
            board.metrics(visit);
        }
    }

    /// Starts a log of the pages that vCPUs and devices write from now on. One at a time: dropping it ends it.
    pub fn dirty_log(&self) -> Result<GuestDirtyLog, LifecycleError> {
        let board = self.shared.board().ok_or(LifecycleError::Gone { call: "log the writes of" })?;
        Ok(board.vm().dirty_log(board.ram())?)
    }

    /// How far memory has come that comes [on demand](super::Snapshot::on_demand). `None` for other memory.
    pub fn memory_progress(&self) -> Result<Option<MemoryProgress>, LifecycleError> {
        self.shared.control("look at", |control| Ok(control.pager.as_ref().map(Pager::progress)))
    }

    /// Waits until what is fetched before it is touched has come: the [working set](super::Snapshot::prefetch), or
    /// [all](super::Snapshot::prefetch_all). A guest that starts then does not wait for it; one that starts at once takes
    /// what has come, and waits for the rest. Returns at once for other memory, and when the machine has ended.
    pub fn wait_for_prefetch(&self) -> Result<(), LifecycleError> {
        while self.outcome().is_none() && self.memory_progress()?.is_some_and(|progress| progress.prefetching)
        {
            thread::sleep(PREFETCH_LOOK);
        }
        Ok(())
    }

    /// The memory that the guest has touched since it was restored [on demand](super::Snapshot::on_demand), and before
    /// that what was fetched as its working set. `None` for other memory.
    pub fn working_set(&self) -> Result<Option<WorkingSet>, LifecycleError> {
        self.shared.control("look at", |control| Ok(control.pager.as_ref().map(Pager::working_set)))
    }

    /// The system calls that the machine's devices make while it runs, for sandboxes.
    pub fn syscalls(&self) -> BTreeSet<Syscall> {
        self.shared.board().map(|board| board.syscalls()).unwrap_or_default()
    }

    /// The same event loop; a panic of a handler that is hosted through it ends this machine, with
    /// [`Outcome::Panicked`] that names `part`.
    pub fn guard(&self, event_loop: &EventLoop, part: impl Into<String>) -> EventLoop {
        let (status, part) = (Arc::clone(&self.shared.status), part.into());
        event_loop.on_panic(move |panic| status.panicked(part.clone(), panic.message))
    }
}
