//! A whole machine: built from parts, started, paused, stopped; as many as one process wants.

mod builder;
mod error;
mod events;
mod outcome;
mod payload;
mod plan;
mod timeline;
mod vcpu_thread;

use std::fmt;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use ossature_bus::{Device, EventLoop, MetricVisitor};
use ossature_memory::Ram;

pub use builder::MachineBuilder;
pub use error::{BuildError, BuildErrors, LifecycleError};
pub use events::{EventStream, MachineEvent};
pub use outcome::{MachineHandle, Outcome};
pub use payload::{Linux, Payload, PayloadError};
pub use timeline::Phase;

use crate::{StatsReader, Vcpu, Vm};
use outcome::{Peer, Shared};
use timeline::Stopwatch;
use vcpu_thread::{Mailbox, Order};

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LifecycleState {
    /// Built, not started.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs and devices stand still.
    Paused,
    /// It has ended, for whatever reason. Final.
    Stopped,
}

impl fmt::Display for LifecycleState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

/// A virtual machine. One owner controls it; [`MachineHandle`]s and device handles reach it from elsewhere.
/// Dropping it stops it and gives everything back: threads, descriptors, memory.
///
/// Control waits for vCPUs and workers, never the other way round, and holds no lock while it waits.
pub struct Machine {
    state: LifecycleState,
    shared: Arc<Shared>,
    /// vCPUs that wait for `start`.
    vcpus: Vec<Vcpu>,
    threads: Vec<JoinHandle<Vcpu>>,
    name: String,
    phases: Vec<Phase>,
    devices: Vec<Box<dyn Device>>,
    /// The hypervisor's counters, by scope.
    statistics: Vec<(String, StatsReader)>,
    /// Lives as long as the memory that it maps.
    _vm: Box<dyn Vm>,
    ram: Ram,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine")
            .field("name", &self.name)
            .field("state", &self.state())
            .finish_non_exhaustive()
    }
}

impl Machine {
    /// Begins a machine. `name` shows up in thread names.
    pub fn builder(name: impl Into<String>) -> MachineBuilder {
        MachineBuilder::new(name.into())
    }

    /// Where the machine is in its life. A running machine may stop by itself at any time.
    pub fn state(&self) -> LifecycleState {
        if self.shared.outcome().is_some() { LifecycleState::Stopped } else { self.state }
    }

    /// What happened to the machine since it was built.
    pub fn events(&self) -> EventStream {
        self.shared.events.stream()
    }

    /// A handle that can stop the machine from another thread.
    pub fn handle(&self) -> MachineHandle {
        MachineHandle { shared: Arc::clone(&self.shared) }
    }

    /// Guest memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// Whether the guest's kernel has reported a panic.
    pub fn guest_panicked(&self) -> bool {
        self.shared.guest_panicked()
    }

    fn expect(&self, state: LifecycleState, call: &'static str) -> Result<(), LifecycleError> {
        let is = self.state();
        if is == state { Ok(()) } else { Err(LifecycleError::Illegal { call, state: is }) }
    }

    /// Starts the vCPUs, each on a thread of its own. Only a created machine can start.
    pub fn start(&mut self) -> Result<(), LifecycleError> {
        self.expect(LifecycleState::Created, "start")?;
        let mut watch = Stopwatch::start();
        let vcpus = std::mem::take(&mut self.vcpus);
        let peers = vcpus
            .iter()
            .map(|vcpu| Peer { mailbox: Arc::new(Mailbox::new()), kicker: vcpu.kicker() })
            .collect();
        self.shared.set_peers(peers);
        self.shared.events.push(MachineEvent::Started);
        self.state = LifecycleState::Running;
        for (index, (vcpu, peer)) in (0..).zip(vcpus.into_iter().zip(self.shared.peers())) {
            let (mailbox, shared) = (Arc::clone(&peer.mailbox), Arc::clone(&self.shared));
            match vcpu_thread::spawn(&self.name, index, vcpu, mailbox, shared) {
                Ok(thread) => self.threads.push(thread),
                Err(source) => {
                    self.shared.end(Outcome::Stopped);
                    self.join();
                    return Err(LifecycleError::Thread { index, source });
                }
            }
        }
        watch.lap("start");
        self.phases.extend(watch.phases());
        Ok(())
    }

    /// What building and starting the machine consisted of, in order.
    pub fn phases(&self) -> &[Phase] {
        &self.phases
    }

    /// When each vCPU first entered `KVM_RUN`; none for one that has not yet. Before
    /// [`start`](Self::start) the list is empty.
    pub fn first_runs(&self) -> Vec<Option<Instant>> {
        self.shared.peers().iter().map(|peer| peer.mailbox.first_run()).collect()
    }

    /// Stops all vCPUs between two instructions, then all devices. The machine goes on when the guard is
    /// dropped or told to. A machine that ends meanwhile is not paused: that is an error.
    pub fn pause(&mut self) -> Result<Paused<'_>, LifecycleError> {
        self.expect(LifecycleState::Running, "pause")?;
        for peer in self.shared.peers() {
            peer.order(Order::Pause);
        }
        for peer in self.shared.peers() {
            peer.mailbox.wait_still();
        }
        self.expect(LifecycleState::Running, "pause")?;
        self.state = LifecycleState::Paused;
        if let Err(error) = self.quiesce() {
            // What stands still already goes on; the first error is the one to tell.
            let _ = self.go_on();
            return Err(error);
        }
        self.shared.events.push(MachineEvent::Paused);
        Ok(Paused { machine: self })
    }

    /// Goes on after a pause that was [kept](Paused::keep).
    pub fn resume(&mut self) -> Result<(), LifecycleError> {
        self.expect(LifecycleState::Paused, "resume")?;
        self.go_on()?;
        self.shared.events.push(MachineEvent::Resumed);
        Ok(())
    }

    fn quiesce(&mut self) -> Result<(), LifecycleError> {
        each(&mut self.devices, |device| device.quiesce())
    }

    /// Devices first: a vCPU must find them working.
    fn go_on(&mut self) -> Result<(), LifecycleError> {
        let devices = each(&mut self.devices, |device| device.resume());
        self.state = LifecycleState::Running;
        for peer in self.shared.peers() {
            peer.order(Order::Run);
        }
        devices
    }

    /// Stops the machine for good, from any state, and returns when vCPUs and devices stand still. A machine
    /// that has ended by itself keeps its outcome.
    pub fn stop(&mut self) -> Result<Outcome, LifecycleError> {
        self.shared.end(Outcome::Stopped);
        self.wait()
    }

    /// Waits until the machine ends, then until its threads are gone and its devices have finished what they
    /// had begun. A machine that was never started, or that is paused, cannot be waited for.
    pub fn wait(&mut self) -> Result<Outcome, LifecycleError> {
        self.expect_started()?;
        let outcome = self.shared.wait();
        self.finish(outcome)
    }

    /// As [`wait`](Self::wait), and runs `event_loop` on this thread meanwhile: for the devices that have their turns
    /// on it, and the VMM's own descriptors. A [stop](EventLoop::stop) of the loop by somebody else does not end it.
    pub fn wait_on(&mut self, event_loop: &EventLoop) -> Result<Outcome, LifecycleError> {
        self.expect_started()?;
        let outcome = self.shared.run(event_loop).map_err(|source| LifecycleError::EventLoop { source })?;
        self.finish(outcome)
    }

    fn expect_started(&self) -> Result<(), LifecycleError> {
        match self.state() {
            LifecycleState::Running | LifecycleState::Stopped => Ok(()),
            state => Err(LifecycleError::Illegal { call: "wait for", state }),
        }
    }

    fn finish(&mut self, outcome: Outcome) -> Result<Outcome, LifecycleError> {
        self.join();
        self.quiesce()?;
        Ok(outcome)
    }

    fn join(&mut self) {
        self.state = LifecycleState::Stopped;
        self.vcpus.clear();
        for thread in self.threads.drain(..) {
            // A thread that panicked has recorded that as the outcome.
            drop(thread.join());
        }
    }

    /// Shows every counter of the machine as (scope, name, value): the scope is a device's id, or
    /// `kvm` or `vcpuN` for the hypervisor's own counters if the machine was built with
    /// [`statistics`](MachineBuilder::statistics).
    pub fn metrics(&self, visit: &mut dyn FnMut(&str, &str, u64)) {
        for device in &self.devices {
            device.metrics(&mut Scoped { scope: device.id(), visit });
        }
        for (scope, reader) in &self.statistics {
            for stat in reader.read().unwrap_or_default() {
                // Histograms are for tools that read the descriptor themselves.
                if let [value] = stat.values[..] {
                    visit(scope, &stat.name, value);
                }
            }
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.shared.end(Outcome::Stopped);
        self.join();
        // Nobody is left to tell.
        let _ = self.quiesce();
    }
}

fn each(
    devices: &mut [Box<dyn Device>],
    step: impl Fn(&mut dyn Device) -> Result<(), ossature_bus::DeviceError>,
) -> Result<(), LifecycleError> {
    let mut first = Ok(());
    for device in devices {
        if let Err(source) = step(&mut **device) {
            first = first.and(Err(LifecycleError::Device { id: device.id().to_owned(), source }));
        }
    }
    first
}

struct Scoped<'a> {
    scope: &'a str,
    visit: &'a mut dyn FnMut(&str, &str, u64),
}

impl MetricVisitor for Scoped<'_> {
    fn counter(&mut self, name: &'static str, value: u64) {
        (self.visit)(self.scope, name, value);
    }

    fn gauge(&mut self, name: &'static str, value: u64) {
        (self.visit)(self.scope, name, value);
    }
}

/// A machine that stands still. It goes on when this is dropped, unless the pause is [kept](Self::keep).
#[derive(Debug)]
pub struct Paused<'a> {
    machine: &'a mut Machine,
}

impl Paused<'_> {
    /// Goes on, and tells if a device could not.
    pub fn resume(self) -> Result<(), LifecycleError> {
        self.machine.resume()
    }

    /// Leaves the machine paused until [`Machine::resume`] or [`Machine::stop`].
    pub fn keep(self) {
        std::mem::forget(self);
    }
}

impl std::ops::Deref for Paused<'_> {
    type Target = Machine;

    fn deref(&self) -> &Machine {
        self.machine
    }
}

impl Drop for Paused<'_> {
    fn drop(&mut self) {
        if self.machine.state() == LifecycleState::Paused {
            // The device that could not go on has been reported where it failed.
            let _ = self.machine.resume();
        }
    }
}

#[cfg(test)]
mod tests;
