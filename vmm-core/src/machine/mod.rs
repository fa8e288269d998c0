//! Whole machines: built from parts, started, paused, reset, stopped; any number in one process.
//!
//! A [`MachineBuilder`] takes devices, memory and what the machine runs; [`Machine`] is what it builds. Others reach it
//! through [`MachineHandle`]s and follow its [`MachineEvent`]s.
//!
//! ```
//! use ossature_bus::Size;
//! use ossature_core::machine::{Machine, MachineEvent, Outcome};
//! use ossature_core::scripted::{Script, Scripted};
//! use ossature_legacy::AcpiPower;
//!
//! // A guest that powers off at once: it writes S5 and "sleep" to the ACPI register. With KVM: `&Kvm::open()?`, and
//! // `.payload(Linux::new("vmlinux"))`.
//! let guest = Script::new().pio_write(0x600, Size::B1, 0x34);
//! let machine = Machine::builder("example").device(AcpiPower::new("power")).build(&Scripted::new([guest]))?;
//! let mut events = machine.events();
//! machine.start()?;
//! assert_eq!(machine.wait()?, Outcome::Shutdown);
//! assert_eq!(events.try_next(), Some(MachineEvent::Started));
//! assert_eq!(events.try_next(), Some(MachineEvent::Ended(Outcome::Shutdown)));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod board;
mod builder;
mod checkpoint;
mod clock;
mod control;
mod error;
mod events;
mod fork;
mod handle;
mod lines;
mod mailbox;
mod memory_usage;
mod outcome;
mod paused;
mod payload;
mod plan;
mod reporter;
mod snapshot;
mod state;
mod status;
mod timeline;
mod vcpu_thread;
mod wiring;

use std::fmt;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use ossature_memory::Ram;

pub use crate::arch::Linux;
pub use builder::MachineBuilder;
pub use checkpoint::Checkpoint;
pub use clock::GuestClock;
pub use error::{BuildError, BuildErrors, LifecycleError};
pub use events::{EventStream, FollowedEvents, MachineEvent, PollableEvents, Severity};
pub use fork::{ForkError, ForkPlan, Holder, Template};
pub use handle::MachineHandle;
pub use memory_usage::MemoryUsage;
pub use outcome::Outcome;
pub use paused::{Paused, PausedVcpus};
pub use payload::{Payload, PayloadError};
pub use reporter::EventReporter;
#[cfg(feature = "lz4")]
pub use snapshot::PackedSnapshot;
pub use snapshot::{
    KeyId, LiveSnapshot, MemoryProgress, RemoteSnapshot, Snapshot, SnapshotError, SnapshotId, SnapshotKey,
    SnapshotSection, SnapshotSource, WorkingSet, serve_snapshot,
};
pub use state::MachineState;
pub use status::{OnReset, OnTripleFault};
pub use timeline::BuildPhase;

/// Where a machine is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LifecycleState {
    /// Built, not started.
    Created,
    /// Its vCPUs run.
    Running,
    /// Its vCPUs and devices are paused.
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

/// A virtual machine. It can do everything that a [`MachineHandle`] can. Dropping it stops the machine and releases its
/// threads, descriptors and memory.
///
/// ```
/// use std::time::Duration;
///
/// use ossature_core::machine::{Machine, MachineEvent, Outcome};
/// use ossature_core::scripted::{Script, Scripted};
///
/// // With KVM: `&Kvm::open()?` instead of a guest that follows a script.
/// let machine = Machine::builder("example").build(&Scripted::new([Script::new()]))?;
/// machine.start()?;
///
/// // Others watch it and end it, while its owner waits.
/// let handle = machine.handle();
/// let mut events = machine.events();
/// let watcher = std::thread::spawn(move || {
///     assert_eq!(events.next_timeout(Duration::from_secs(60)), Some(MachineEvent::Started));
///     handle.pause()?.resume()?;
///     handle.stop();
///     Ok::<(), ossature_core::machine::LifecycleError>(())
/// });
/// assert_eq!(machine.wait()?, Outcome::Stopped);
/// watcher.join().unwrap()?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Machine {
    handle: MachineHandle,
    ram: Arc<Ram>,
}

impl fmt::Debug for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Machine").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Machine {
    /// Starts to build a machine. `name` appears in thread names.
    pub fn builder(name: impl Into<String>) -> MachineBuilder {
        MachineBuilder::new(name.into())
    }

    /// A handle that reaches the machine from other threads.
    pub fn handle(&self) -> MachineHandle {
        self.handle.clone()
    }

    /// Guest memory.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// A copy of the descriptor of the hypervisor's virtual machine, for what this crate does not do; `None` if it has
    /// none. What is done with it must not contradict what the machine does.
    pub fn vm_descriptor(&self) -> io::Result<Option<OwnedFd>> {
        let board = self.handle.shared.board();
        let descriptor = board.as_ref().and_then(|board| board.vm().descriptor());
        descriptor.map(|descriptor| descriptor.try_clone_to_owned()).transpose()
    }

    /// Starts the devices, and the vCPUs, each on a thread of its own. Only a created machine can start.
    pub fn start(&self) -> Result<(), LifecycleError> {
        self.handle.shared.control("start", |control| control.start())
    }

    /// Stops the machine for good, from any state, and returns when vCPUs and devices have stopped. A machine
    /// that has ended by itself keeps its outcome.
    pub fn stop(&self) -> Result<Outcome, LifecycleError> {
        self.handle.stop();
        self.wait()
    }

    /// What building and starting the machine consisted of, in order.
    pub fn phases(&self) -> Vec<BuildPhase> {
        let phases = self.handle.shared.control("look at", |control| Ok(control.phases.clone()));
        phases.unwrap_or_default()
    }

    /// When each vCPU first entered `KVM_RUN`; none for one that has not yet. Before
    /// [`start`](Self::start) the list is empty.
    pub fn first_runs(&self) -> Vec<Option<Instant>> {
        self.handle.shared.status.peers().iter().map(|peer| peer.mailbox.first_run()).collect()
    }
}

impl Deref for Machine {
    type Target = MachineHandle;

    fn deref(&self) -> &MachineHandle {
        &self.handle
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.handle.shared.release();
    }
}

#[cfg(test)]
mod tests;
