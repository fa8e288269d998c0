//! Why there are no clones.

use std::error::Error;
use std::fmt;

use ossature_bus::Identity;

use crate::machine::{BuildErrors, LifecycleError, SnapshotError};

/// Why a fork has made no machine at all. Children have the numbers that the plan's devices are made with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ForkError {
    /// The parent cannot be saved.
    #[error("the parent: {0}")]
    Parent(#[from] SnapshotError),
    /// The plan is one of no children.
    #[error("a fork has one child at least")]
    NoChildren,
    /// The devices of a child could not be made.
    #[error("child {child}: its devices: {source}")]
    Devices {
        /// The child.
        child: u64,
        /// Why.
        source: Box<dyn Error + Send + Sync>,
    },
    /// The code that makes a child's devices panicked.
    #[error("child {child}: making its devices panicked: {message}")]
    Panicked {
        /// The child.
        child: u64,
        /// What the panic said.
        message: String,
    },
    /// No device would tell the guest that it is a clone, which would draw the same random numbers as the others.
    #[error("child {child}: no device of it has a generation ID: a machine that is forked needs a VmGenId")]
    NoGeneration {
        /// The child.
        child: u64,
    },
    /// A child would have something that another guest has.
    #[error("child {child}: device {device:?}: its {identity} is {holder} too")]
    SameIdentity {
        /// The child.
        child: u64,
        /// Its device.
        device: String,
        /// What it has.
        identity: Identity,
        /// Who has it, too.
        holder: Holder,
    },
    /// A child cannot be built.
    #[error("child {child}: {errors}")]
    Build {
        /// The child.
        child: u64,
        /// Everything that is wrong.
        #[source]
        errors: BuildErrors,
    },
    /// A child cannot start.
    #[error("child {child} cannot start: {source}")]
    Start {
        /// The child.
        child: u64,
        /// Why.
        source: LifecycleError,
    },
}

/// Who has an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// The machine that was forked.
    Parent,
    /// One of its children.
    Child(u64),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Parent => f.write_str("the parent's"),
            Self::Child(child) => write!(f, "child {child}'s"),
        }
    }
}
