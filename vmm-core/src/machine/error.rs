//! What can be wrong with a machine's configuration, with the host, or with the order of calls.

use std::fmt;
use std::io;

use ossature_bus::{AttachError, BusError, DeviceError};
use ossature_memory::RamError;
use ossature_memory::layout::Conflict;

use super::LifecycleState;
use super::payload::PayloadError;
use crate::VmError;

/// One thing that keeps a machine from being built.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BuildError {
    /// A machine without a vCPU.
    #[error("cpus: 0 asked for; a machine has at least 1")]
    NoCpu,
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
    #[error("{kind}: {conflict}")]
    Layout {
        /// Memory addresses, ports or interrupts.
        kind: &'static str,
        /// Who with whom.
        conflict: Conflict,
    },
    /// Guest memory could not be had.
    #[error("memory: {0}")]
    Ram(#[source] RamError),
    /// The hypervisor refused.
    #[error(transparent)]
    Vm(#[from] VmError),
    /// A device would not attach.
    #[error("device {id:?} cannot be attached: {source}")]
    Attach {
        /// The device.
        id: String,
        /// Why.
        source: AttachError,
    },
    /// The buses would not take the devices, although the layout has places for them.
    #[error(transparent)]
    Bus(BusError),
    /// A device answers another number of ranges than it asked for.
    #[error("device {id:?} asked for {asked} ranges and answers {given}")]
    Ports {
        /// The device.
        id: String,
        /// Ranges that it asked for.
        asked: usize,
        /// Ports that it gave.
        given: usize,
    },
    /// What the machine is to run cannot be loaded.
    #[error("{source}")]
    Payload {
        /// Why.
        source: PayloadError,
    },
    /// The host has no descriptor or no page left for a device.
    #[error("device {id:?}: no event or page to be had: {source}")]
    Host {
        /// The device.
        id: String,
        /// The host's error.
        source: io::Error,
    },
}

/// All that keeps a machine from being built, not only the first.
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
    /// The event loop could not go on.
    #[error("the event loop failed: {source}")]
    EventLoop {
        /// The host's error.
        source: io::Error,
    },
}
