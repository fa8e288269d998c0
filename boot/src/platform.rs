//! What the boot tables describe: processors, RAM and the nodes that the machine assigned.

mod error;

use std::ops::RangeInclusive;

use crate::caches::Caches;
use crate::numa::{Numa, NumaError};

pub use error::PlatformError;
pub use ossature_memory::layout::{NodeKind, Trigger};

/// A machine as its guest is told about it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Platform {
    /// The processors, boot processor first, by the ids that the interrupt controller knows them by.
    pub cpus: Vec<u32>,
    /// RAM, ascending, from address 0, holes left out.
    pub ram: Vec<RamRange>,
    /// Devices, in the order in which the guest is to find them.
    pub nodes: Vec<Node>,
    /// The processors' caches, where tables tell the guest of them; nothing is said of unknown ones.
    pub caches: Option<Caches>,
    /// The NUMA nodes, if there are any.
    pub numa: Option<Numa>,
}

impl Platform {
    /// A machine of these processors, RAM and devices, unknown caches, and no NUMA nodes.
    pub fn new(cpus: Vec<u32>, ram: Vec<RamRange>, nodes: Vec<Node>) -> Self {
        Self { cpus, ram, nodes, caches: None, numa: None }
    }

    /// The same machine, whose processors have these caches, if they are known.
    #[must_use]
    pub fn with_caches(mut self, caches: Option<Caches>) -> Self {
        self.caches = caches;
        self
    }

    /// The same machine, with these NUMA nodes, if there are any.
    #[must_use]
    pub fn with_numa(mut self, numa: Option<Numa>) -> Self {
        self.numa = numa;
        self
    }

    /// Fails if its NUMA nodes are those of another machine.
    pub(crate) fn check_numa(&self) -> Result<(), NumaError> {
        self.numa.as_ref().map_or(Ok(()), |numa| numa.check_ranges(self.cpus.len(), &self.ram))
    }

    /// How many processors each package has: those of a NUMA node, or all.
    pub(crate) fn packages(&self) -> Vec<usize> {
        match &self.numa {
            Some(numa) => numa.packages().map(|cpus| cpus as usize).collect(),
            None => vec![self.cpus.len()],
        }
    }
}

/// A range of guest-physical addresses backed by RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RamRange {
    /// First byte.
    pub base: u64,
    /// Length in bytes.
    pub len: u64,
}

impl RamRange {
    /// `len` bytes from the guest-physical address `base` on.
    pub const fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }
}

/// A device as the guest is told about it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Node {
    /// The device's name in the machine, for errors.
    pub id: String,
    /// What it is.
    pub kind: NodeKind,
    /// The addresses that it answers.
    pub ranges: Vec<NodeRange>,
    /// The interrupts that it raises.
    pub interrupts: Vec<NodeInterrupt>,
    /// The memory addresses that it hands on to devices behind it.
    pub windows: Vec<RangeInclusive<u64>>,
}

impl Node {
    /// A device of this name and kind with these addresses and interrupts.
    pub fn new(
        id: impl Into<String>,
        kind: NodeKind,
        ranges: Vec<NodeRange>,
        interrupts: Vec<NodeInterrupt>,
    ) -> Self {
        Self { id: id.into(), kind, ranges, interrupts, windows: Vec::new() }
    }

    /// The same device, which hands on these memory addresses. Tables take no empty window, and none of all addresses.
    #[must_use]
    pub fn with_windows(mut self, windows: impl IntoIterator<Item = RangeInclusive<u64>>) -> Self {
        self.windows = windows.into_iter().collect();
        self
    }

    /// Returns true if each of its windows has a length: is not empty, and not all that there is.
    pub(crate) fn has_windows_with_lengths(&self) -> bool {
        self.windows.iter().all(|window| !window.is_empty() && *window != (0..=u64::MAX))
    }

    /// Returns true if its range begins with a VM generation ID.
    pub(crate) fn has_generation(&self) -> bool {
        matches!(*self.ranges, [NodeRange::Memory { base, len }] if base.is_multiple_of(8) && len >= 16)
    }

    /// All its ports, one by one.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        let io = |range: &NodeRange| match *range {
            NodeRange::Io { base, len } => Some((base, len)),
            NodeRange::Memory { .. } => None,
        };
        self.ranges
            .iter()
            .filter_map(io)
            .flat_map(|(base, len)| (0..len).filter_map(move |i| base.checked_add(i)))
    }
}

/// Addresses of a [`Node`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NodeRange {
    /// Guest-physical memory.
    Memory {
        /// First byte.
        base: u64,
        /// Length in bytes.
        len: u64,
    },
    /// I/O ports.
    Io {
        /// First port.
        base: u16,
        /// Number of ports.
        len: u16,
    },
}

/// An interrupt of a [`Node`]. Several nodes may raise the same one if it is level-triggered for each of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NodeInterrupt {
    /// Its number: the global system interrupt on x86_64, the shared peripheral interrupt on aarch64.
    pub number: u32,
    /// How it is raised.
    pub trigger: Trigger,
}

impl NodeInterrupt {
    /// The interrupt `number`, raised like this.
    pub const fn new(number: u32, trigger: Trigger) -> Self {
        Self { number, trigger }
    }
}
