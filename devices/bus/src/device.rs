//! The device contract: a device's whole life in a machine.

use std::fmt;
use std::sync::Arc;

use crate::state::StateError;
use crate::{Assigned, DeviceError, Handover, Identity, MetricVisitor, NodeKind, Requires};

/// Something that a device found out.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceEvent {
    /// The guest's driver broke the device's protocol: the device stopped until the guest resets it.
    NeedsReset {
        /// What it did.
        reason: String,
    },
    /// The guest's driver did something that the device's specification forbids; the device ignored it and goes on.
    Ignored {
        /// What it did.
        reason: String,
    },
    /// The host's side failed (a disk, a socket): the device goes on as its specification says.
    HostError {
        /// What failed.
        reason: String,
    },
    /// The host's side failed, and the device keeps what its driver has asked for until it pauses and resumes, when it
    /// tries again: a machine that is paused until the host is in order never notices.
    Stalled {
        /// What failed.
        reason: String,
    },
    /// The device's code panicked: a bug. The machine ends.
    Panicked {
        /// What the panic said.
        message: String,
    },
}

impl fmt::Display for DeviceEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NeedsReset { reason } => write!(f, "waits for a reset by its driver: {reason}"),
            Self::Ignored { reason } => write!(f, "ignored what its driver did: {reason}"),
            Self::HostError { reason } => f.write_str(reason),
            Self::Stalled { reason } => write!(f, "waits to try again when the machine is resumed: {reason}"),
            Self::Panicked { message } => write!(f, "panicked: {message}"),
        }
    }
}

/// Where a device reports [`DeviceEvent`]s. A device reports each condition once until it is reset, so
/// that no guest can flood the VMM.
#[derive(Clone)]
pub struct EventSink(Arc<dyn Fn(DeviceEvent) + Send + Sync>);

impl EventSink {
    /// A sink that calls `f`, from any thread; `f` must not block.
    pub fn new(f: impl Fn(DeviceEvent) + Send + Sync + 'static) -> Self {
        Self(Arc::new(f))
    }

    /// A sink that drops what it gets.
    pub fn discard() -> Self {
        Self::new(|_| ())
    }

    /// Reports `event`.
    pub fn report(&self, event: DeviceEvent) {
        (self.0)(event);
    }
}

impl fmt::Debug for EventSink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EventSink")
    }
}

/// What a device has to save.
#[derive(Debug)]
#[non_exhaustive]
pub enum DeviceState {
    /// It cannot be saved.
    Unsupported {
        /// Why.
        reason: &'static str,
    },
    /// There is nothing to save: the device is the same after [`Device::reset`].
    Stateless,
    /// This is it.
    Saved(Handover<'static>),
}

/// A system call that a device makes after its machine has started, for sandboxes: the name as the
/// kernel's tables spell it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Syscall(pub &'static str);

/// A device as the machine sees it. No method but [`identities`](Self::identities) has a body by default: a device that
/// has nothing to do says so.
///
/// Its life: [`attach`](Self::attach), which leaves it quiet, then any number of [`resume`](Self::resume), first when
/// the machine starts, and [`quiesce`](Self::quiesce), and at last [`detach`](Self::detach). While it is quiet it may be
/// [saved](Self::save), [restored](Self::restore) or [reset](Self::reset). The machine's board calls each of these, one
/// at a time.
pub trait Device: Send {
    /// The device's name in this machine: chosen by the caller, unique, stable over the machine's life.
    fn id(&self) -> &str;
    /// What it needs. Constant over the device's life.
    fn requires(&self) -> Requires;
    /// Takes what the machine assigned, has each [`RegisterRange`](crate::RegisterRange) answered, and returns how the
    /// guest is told about it. The device answers its registers from now on and is quiet otherwise. On an error it
    /// keeps nothing.
    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError>;
    /// Stops all host-side work (threads, I/O in flight) and returns when it has stopped. Does nothing if the device is
    /// quiet already. Registers are still answered.
    fn quiesce(&mut self) -> Result<(), DeviceError>;
    /// Starts host-side work, at first or after [`quiesce`](Self::quiesce). What one device at a time may hold, such as
    /// the lock on a disk, is taken here, and given up when the device is quiesced.
    fn resume(&mut self) -> Result<(), DeviceError>;
    /// Returns to the state after [`attach`](Self::attach), as a machine reset does. The vCPUs do not run.
    fn reset(&mut self) -> Result<(), DeviceError>;
    /// Its state, if it can be saved. The device is quiet and the vCPUs do not run.
    ///
    /// What a saved state holds of work to be done (such as output that waits for the host) is done by whichever device
    /// goes on: this one after [`resume`](Self::resume), or the one that the state is restored into.
    fn save(&mut self) -> Result<DeviceState, DeviceError>;
    /// Becomes what the device was that gave the state; that device had the same configuration, perhaps in another
    /// process. Called after [`attach`](Self::attach), while the device is quiet and the vCPUs do not run; it goes on
    /// with [`resume`](Self::resume).
    ///
    /// The state is hostile input: all of it is checked before any of it counts. If it is refused, the device is as
    /// it was. A device that gives no [`DeviceState::Saved`] refuses every state.
    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError>;
    /// Ends the device's part in the machine: all work has stopped, and it lets go of everything that it was assigned.
    /// It may be attached again, to any machine. Called once, when the guest can no longer reach it.
    fn detach(&mut self) -> Result<(), DeviceError>;
    /// The system calls that it makes once the machine runs.
    fn syscalls(&self) -> &'static [Syscall];
    /// Shows its counters to `visitor`.
    fn metrics(&self, visitor: &mut dyn MetricVisitor);
    /// What of it no other guest may have: a fork refuses clones that would share one. Nothing by default.
    fn identities(&self) -> Vec<Identity> {
        Vec::new()
    }
}

/// A device whose type is not known is a device, too.
impl Device for Box<dyn Device> {
    fn id(&self) -> &str {
        (**self).id()
    }
    fn requires(&self) -> Requires {
        (**self).requires()
    }
    fn attach(&mut self, assigned: Assigned) -> Result<NodeKind, DeviceError> {
        (**self).attach(assigned)
    }
    fn quiesce(&mut self) -> Result<(), DeviceError> {
        (**self).quiesce()
    }
    fn resume(&mut self) -> Result<(), DeviceError> {
        (**self).resume()
    }
    fn reset(&mut self) -> Result<(), DeviceError> {
        (**self).reset()
    }
    fn save(&mut self) -> Result<DeviceState, DeviceError> {
        (**self).save()
    }
    fn restore(&mut self, handover: Handover<'_>) -> Result<(), StateError> {
        (**self).restore(handover)
    }
    fn detach(&mut self) -> Result<(), DeviceError> {
        (**self).detach()
    }
    fn syscalls(&self) -> &'static [Syscall] {
        (**self).syscalls()
    }
    fn metrics(&self, visitor: &mut dyn MetricVisitor) {
        (**self).metrics(visitor);
    }
    fn identities(&self) -> Vec<Identity> {
        (**self).identities()
    }
}

impl fmt::Debug for dyn Device + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Device({:?})", self.id())
    }
}

#[cfg(not(loom))]
#[cfg(test)]
mod tests;
