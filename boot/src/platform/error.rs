//! Why there is no such machine, whichever tables are to tell of it.

use super::NodeKind;

/// Why a platform contradicts itself.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlatformError {
    /// A node that has what its kind does not have.
    #[error("device `{id}` of kind {kind:?} has to have {needs}")]
    BadNode {
        /// The node's name.
        id: String,
        /// Its kind.
        kind: NodeKind,
        /// What would be right.
        needs: &'static str,
    },
    /// Two nodes that raise one interrupt, of which at least one does so by edges.
    #[error(
        "devices `{first}` and `{second}` cannot share interrupt {number}: both have to be level-triggered"
    )]
    SharedEdge {
        /// Its [number](crate::NodeInterrupt::number).
        number: u32,
        /// A node that raises it.
        first: String,
        /// Another one.
        second: String,
    },
    /// Two ranges of memory that begin at one address.
    #[error("both {first} and {second} begin at {base:#x}")]
    SameAddress {
        /// The address.
        base: u64,
        /// What begins there.
        first: String,
        /// What else does.
        second: String,
    },
    /// RAM that is empty or ends beyond all addresses.
    #[error("there cannot be {len:#x} bytes of RAM at {base:#x}")]
    Ram {
        /// First byte.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A processor whose id is no affinity.
    #[error("the id {id:#x} of a processor has bits beyond its affinity's, {:#x}", 0x00ff_ffff)]
    CpuId {
        /// The id.
        id: u32,
    },
}
