//! What can be wrong with a machine's configuration, with the host, or with the order of calls.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;

use ossature_boot::NumaError;
use ossature_bus::state::StateError;
use ossature_bus::{BusError, DeviceError, ResourceName};
use ossature_memory::RamError;
use ossature_memory::layout::Conflict;

use super::LifecycleState;
use super::payload::PayloadError;
use super::snapshot::SnapshotError;
use crate::VmError;

/// One thing that keeps a machine from being built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A machine without a vCPU.
    #[error("cpus: 0 asked for; a machine has at least 1")]
    NoCpu,
    /// NUMA nodes of another machine.
    #[error("numa: {0}")]
    Numa(NumaError),
    /// A device has no name.
    #[error("device {index}: its id is empty; give each device a unique id")]
    EmptyId {
        /// Its position in the order of addition.
        index: usize,
    },
    /// Two devices have one name.
    #[error("device id {id:?} is used twice; give each device a unique id")]
    DuplicateId {
        /// The name.
        id: String,
    },
    /// A device asks for something that contradicts itself.
    #[error("device {id:?} asks for {what}")]
    BadRequest {
        /// The device.
        id: String,
        /// What it asks for.
        what: String,
    },
    /// Two devices want the same place, or there is no room for one.
    #[error("{kind}: {}", about(kind, conflict))]
    Layout {
        /// Memory addresses, ports or interrupts.
        kind: &'static str,
        /// The conflict, with the names of both sides.
        conflict: Conflict,
    },
    /// The devices ask for more than there is, or for pieces that do not fit into what is left.
    #[error("{}", exhausted(kind, (*available, *asked), takers, (room, in_the_way)))]
    Exhausted {
        /// Memory addresses, ports or interrupts.
        kind: &'static str,
        /// How many there are.
        available: u64,
        /// How many are asked for.
        asked: u64,
        /// The devices that ask for them.
        takers: Vec<String>,
        /// Where they are.
        room: Vec<RangeInclusive<u64>>,
        /// What has a fixed place among them: a device, and the place.
        in_the_way: Vec<String>,
    },
    /// More vCPUs than the host has for a machine.
    #[error("cpus: {cpus} vCPUs are more than the {max} that are possible here")]
    TooManyCpus {
        /// How many are asked for.
        cpus: u64,
        /// How many there can be.
        max: u32,
    },
    /// Guest memory could not be allocated.
    #[error("memory: {0}")]
    Ram(#[source] RamError),
    /// Guest memory has addresses that guests do not have on this host.
    #[error(
        "memory: it would end at {end:#x}, and guests have {address_bits} bits of addresses on this host; give the machine \
         less of it"
    )]
    TooHigh {
        /// Where it would end.
        end: u64,
        /// How many bits of addresses guests have.
        address_bits: u32,
    },
    /// The hypervisor refused.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A device would not attach.
    #[error("device {id:?} cannot be attached: {source}")]
    Attach {
        /// The device.
        id: String,
        /// Why.
        source: DeviceError,
    },
    /// The buses would not take the devices, although the layout has places for them.
    #[error(transparent)]
    Bus(BusError),
    /// A device has I/O ports, and the guest has no instructions for them.
    #[error(
        "device {id:?} asks for ports, which guests on this processor cannot reach; use a device in memory in its place"
    )]
    NoPorts {
        /// The device.
        id: String,
    },
    /// A device is on a bus that no device of the machine brings.
    #[error("device {id:?} is on {absent}")]
    NoBus {
        /// The device.
        id: String,
        /// Which bus that is, and what to add.
        absent: &'static str,
    },
    /// A device's interrupts are messages, and the host's interrupt controller has none for guests.
    #[error(
        "device {id:?} sends messages (MSI-X), which the interrupt controller of this host does not take; use interrupt lines, as \
         virtio-mmio does"
    )]
    NoMessages {
        /// The device.
        id: String,
    },
    /// A device asked for registers and does not answer them.
    #[error("device {id:?} asked for registers {name} and does not answer them")]
    Unanswered {
        /// The device.
        id: String,
        /// The registers.
        name: ResourceName,
    },
    /// A device has a name that belongs to a part of the machine itself.
    #[error("device id {id:?} is the machine's own; give the device another one")]
    ReservedId {
        /// The name.
        id: String,
    },
    /// What the machine is to run cannot be loaded.
    #[error("{source}")]
    Payload {
        /// Why.
        source: PayloadError,
    },
    /// The machine cannot go on from its snapshot.
    #[error("snapshot: {0}")]
    Snapshot(#[from] SnapshotError),
    /// The host has no descriptor or no page left for a device.
    #[error("device {id:?}: no event or page to be had: {source}")]
    Host {
        /// The device.
        id: String,
        /// The host's error.
        source: io::Error,
    },
}

/// What a machine calls its interrupts in messages.
pub(super) const INTERRUPTS: &str = "interrupts";

const SHARED: &str = "; devices can share those that are level-triggered";

/// What is in the way. Interrupts are numbers, one each; the rest are ranges of addresses.
fn about(kind: &str, conflict: &Conflict) -> String {
    match conflict {
        Conflict::Outside { owner, at, space, .. } if kind == INTERRUPTS => {
            let space: Vec<_> = space.iter().map(|range| format!("{range:?}")).collect();
            format!("{owner} requests interrupt {at}, which is outside of {}", space.join(", "))
        }
        Conflict::Overlap { owner, at, other, .. } if kind == INTERRUPTS => {
            format!("{owner} and {other} both request interrupt {at}{SHARED}")
        }
        conflict => conflict.to_string(),
    }
}

fn exhausted(
    kind: &str,
    (available, asked): (u64, u64),
    takers: &[String],
    (room, in_the_way): (&[RangeInclusive<u64>], &[String]),
) -> String {
    let takers = few(takers);
    if kind == INTERRUPTS {
        return format!(
            "{kind}: {available} there are for devices, and {asked} are asked for by {takers}{SHARED}"
        );
    }
    let room: Vec<_> =
        room.iter().map(|range| format!("{:#x}..={:#x}", range.start(), range.end())).collect();
    let room = if room.is_empty() { String::new() } else { format!(", in {}", room.join(", ")) };
    let mut text = format!(
        "{kind}: {available:#x} there are for devices{room}, and {asked:#x} are asked for by {takers}"
    );
    if !in_the_way.is_empty() {
        text += &format!("; in the way there: {}", few(in_the_way));
    }
    text
}

/// The first names, and how many more there are.
fn few(names: &[String]) -> String {
    const SHOWN: usize = 6;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// All errors that keep a machine from being built, not only the first.
#[derive(Debug)]
pub struct BuildErrors(pub(crate) Vec<BuildError>);

impl BuildErrors {
    /// The errors, at least one.
    pub fn errors(&self) -> &[BuildError] {
        &self.0
    }
}

impl<T: Into<BuildError>> From<T> for BuildErrors {
    fn from(error: T) -> Self {
        Self(vec![error.into()])
    }
}

impl fmt::Display for BuildErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for BuildErrors {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.first().and_then(std::error::Error::source)
    }
}

/// A call that the machine's state does not allow, or that the host could not carry out.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LifecycleError {
    /// The call does not fit the state.
    #[error("cannot {call} a machine that is {state}")]
    Illegal {
        /// What was called.
        call: &'static str,
        /// The state that the machine was in.
        state: LifecycleState,
    },
    /// A vCPU thread could not be started.
    #[error("no thread for vCPU {index}: {source}")]
    Thread {
        /// The vCPU.
        index: u32,
        /// The host's error.
        source: io::Error,
    },
    /// A device's host side failed.
    #[error("device {id:?}: {source}")]
    Device {
        /// The device.
        id: String,
        /// Its error.
        source: DeviceError,
    },
    /// The machine is not built yet, or its owner has given it back.
    #[error("cannot {call} a machine that is not there")]
    Gone {
        /// What was called.
        call: &'static str,
    },
    /// A device cannot be added.
    #[error("{errors}")]
    Build {
        /// Everything that is wrong.
        errors: BuildErrors,
    },
    /// No device has this id.
    #[error("the machine has no device {id:?}")]
    NoSuchDevice {
        /// The id.
        id: String,
    },
    /// A device that is to take another one's place asks for other things, or is another kind of device.
    #[error("device {id:?} is not of the kind of the one that it is to replace")]
    DifferentDevice {
        /// The device.
        id: String,
    },
    /// A device whose place no other one can take.
    #[error("device {id:?} cannot be replaced: {reason}")]
    NotReplaceable {
        /// The device.
        id: String,
        /// Why.
        reason: &'static str,
    },
    /// A device cannot be saved.
    #[error("device {id:?} cannot be saved: {reason}")]
    Unsupported {
        /// The device.
        id: String,
        /// Why.
        reason: &'static str,
    },
    /// A device refused a state.
    #[error("device {id:?} refuses its state: {source}")]
    State {
        /// The device.
        id: String,
        /// Why.
        source: StateError,
    },
    /// A state is of a machine with other devices.
    #[error("device {id:?} {}", if *missing { "has no state there" } else { "is not in this machine" })]
    OtherDevices {
        /// The device.
        id: String,
        /// The machine has the device, but not the state.
        missing: bool,
    },
    /// A state is of a machine with another number of vCPUs.
    #[error("a state of {found} vCPUs, and the machine has {expected}")]
    OtherVcpus {
        /// The state's.
        found: u32,
        /// The machine's.
        expected: u32,
    },
    /// A range of addresses cannot go back to where it began.
    #[error("the registers {name} of device {id:?} cannot go back to where they were at first")]
    Moved {
        /// The device.
        id: String,
        /// The registers.
        name: ResourceName,
    },
    /// No vCPU has this index, or its thread has ended.
    #[error("there is no vCPU {index} to reach")]
    NoSuchVcpu {
        /// The index.
        index: u32,
    },
    /// The hypervisor failed.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// The buses refused an edit.
    #[error(transparent)]
    Bus(BusError),
    /// Guest memory failed.
    #[error("memory: {0}")]
    Memory(#[source] RamError),
    /// What the machine runs cannot be loaded again.
    #[error("{source}")]
    Payload {
        /// Why.
        source: PayloadError,
    },
    /// The event loop could not go on.
    #[error("the event loop failed: {source}")]
    EventLoop {
        /// The host's error.
        source: io::Error,
    },
}

#[cfg(test)]
mod tests;
