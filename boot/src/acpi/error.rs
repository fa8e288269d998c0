//! Why a platform cannot be described by ACPI tables.

use crate::caches::CacheError;
use crate::numa::NumaError;
use crate::platform::{Node, NodeKind, PlatformError};

/// Why a platform cannot be described.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcpiError {
    /// The tables do not fit where they have to be.
    #[error(
        "the ACPI tables for {nodes} devices and {cpus} processors take {len} bytes; there is room for {room}"
    )]
    TooLarge {
        /// Number of nodes.
        nodes: usize,
        /// Number of processors.
        cpus: usize,
        /// Size of the tables in bytes.
        len: u64,
        /// Bytes that they may take.
        room: u64,
    },
    /// More devices of a kind than can be named.
    #[error("more than {limit} devices of kind {kind:?}")]
    TooManyNodes {
        /// The kind.
        kind: NodeKind,
        /// How many are possible.
        limit: usize,
    },
    /// More processors than can be named.
    #[error("more than {limit} processors")]
    TooManyCpus {
        /// How many are possible.
        limit: usize,
    },
    /// A node of a kind that these tables cannot describe.
    #[error("device `{id}`: the ACPI tables cannot describe a device of kind {kind:?}")]
    UnknownKind {
        /// The node's name.
        id: String,
        /// Its kind.
        kind: NodeKind,
    },
    /// A machine without processors.
    #[error("the platform has no processor")]
    NoCpu,
    /// Two processors with one id.
    #[error("the id {id} is given to two processors")]
    DuplicateCpu {
        /// The id.
        id: u32,
    },
    /// A machine of aarch64 without exactly one interrupt controller.
    #[error("the platform has {found} interrupt controllers; ACPI tables of aarch64 need one")]
    InterruptController {
        /// How many it has.
        found: usize,
    },
    /// Caches that no processor can have.
    #[error(transparent)]
    Caches(#[from] CacheError),
    /// NUMA nodes of another machine.
    #[error(transparent)]
    Numa(#[from] NumaError),
    /// A machine that contradicts itself.
    #[error(transparent)]
    Platform(PlatformError),
    /// A node whose ranges or interrupts are not what its kind has.
    #[error("device `{id}` ({kind:?}) needs {needs}")]
    InvalidNode {
        /// The node's name.
        id: String,
        /// Its kind.
        kind: NodeKind,
        /// What would be right.
        needs: &'static str,
    },
}

impl From<PlatformError> for AcpiError {
    fn from(error: PlatformError) -> Self {
        match error {
            PlatformError::BadNode { id, kind, needs } => Self::InvalidNode { id, kind, needs },
            error => Self::Platform(error),
        }
    }
}

impl Node {
    pub(crate) fn invalid(&self, needs: &'static str) -> AcpiError {
        AcpiError::InvalidNode { id: self.id.clone(), kind: self.kind, needs }
    }
}
