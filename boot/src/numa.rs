//! The NUMA nodes of a machine.

use std::collections::BTreeMap;

use crate::platform::RamRange;

/// The NUMA nodes of a machine: which processors and which RAM are near to each other.
///
/// Nodes take processors and RAM in their order: the first one has the processors from 0 on and the RAM from address 0 on, each
/// other one what follows. The processors of a node are a package, with the caches that they share.
///
/// Distances are the times that an access takes, in units of which a node's own memory takes [`LOCAL_DISTANCE`]. Nodes for which
/// nothing else is said are [`REMOTE_DISTANCE`] from each other.
///
/// ```
/// use ossature_boot::{Numa, NumaNode};
/// let numa = Numa::new([NumaNode::new(2, 1 << 30), NumaNode::new(2, 1 << 30), NumaNode::new(0, 4 << 30)])
///     .with_distance(0, 2, 40)
///     .with_distance(1, 2, 40);
/// assert_eq!(numa.check(4, 6 << 30), Ok(()));
/// assert_eq!((numa.distance(0, 0), numa.distance(1, 0), numa.distance(2, 1)), (10, 20, 40));
/// assert!(numa.check(5, 6 << 30).is_err(), "a processor of no node");
/// ```
///
/// [`LOCAL_DISTANCE`]: Self::LOCAL_DISTANCE
/// [`REMOTE_DISTANCE`]: Self::REMOTE_DISTANCE
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numa {
    nodes: Vec<NumaNode>,
    /// The distances that are not the usual ones, by the lower and the higher node.
    distances: BTreeMap<(u32, u32), u8>,
}

/// One of the nodes of [`Numa`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct NumaNode {
    /// Number of its processors.
    pub cpus: u32,
    /// Bytes of its RAM.
    pub memory: u64,
}

/// Why there cannot be such nodes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NumaError {
    /// More nodes than there can be.
    #[error("there are {found} NUMA nodes; {} are possible", Numa::MAX_NODES)]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// A node of nothing.
    #[error("the NUMA node {node} has neither processors nor memory")]
    Empty {
        /// Its number.
        node: u32,
    },
    /// RAM that does not consist of pages.
    #[error(
        "the NUMA node {node} has {memory:#x} bytes of memory; they have to be a multiple of {:#x}",
        Numa::PAGE
    )]
    Memory {
        /// Its number.
        node: u32,
        /// Its bytes.
        memory: u64,
    },
    /// Nodes that have more processors than the machine, or fewer.
    #[error("the NUMA nodes have {found} processors, and the machine has {cpus}")]
    OtherCpus {
        /// How many the nodes have.
        found: u64,
        /// How many there are.
        cpus: u32,
    },
    /// Nodes that have more RAM than the machine, or less.
    #[error("the NUMA nodes have {found:#x} bytes of memory, and the machine has {memory:#x}")]
    OtherMemory {
        /// How much the nodes have, in bytes.
        found: u64,
        /// How much there is.
        memory: u64,
    },
    /// A distance between nodes of which there are not both.
    #[error(
        "there is a distance between the NUMA nodes {from} and {to}, and there are {nodes} nodes, from 0"
    )]
    NoSuchNode {
        /// The lower node.
        from: u32,
        /// The higher node.
        to: u32,
        /// How many there are.
        nodes: usize,
    },
    /// A distance that cannot be.
    #[error(
        "the distance between the NUMA nodes {from} and {to} is {distance}; 11 to 254 are possible, and 10 within a node"
    )]
    Distance {
        /// The lower node.
        from: u32,
        /// The higher node.
        to: u32,
        /// What it is.
        distance: u8,
    },
}

impl Numa {
    /// The distance within a node.
    pub const LOCAL_DISTANCE: u8 = 10;
    /// The distance between two nodes, if no other is given.
    pub const REMOTE_DISTANCE: u8 = 20;
    /// What more than a byte cannot tell from "cannot be reached".
    const MAX_DISTANCE: u8 = 254;
    /// The most that there can be. Linux has a limit of its own when it is built: 64 or more on x86_64, and often 16 on aarch64; it
    /// makes one node of more than that.
    pub const MAX_NODES: usize = 64;
    /// The RAM of a node is a multiple of so many bytes. Linux needs more to make use of it: 4 MiB on x86_64, and whole pages of its
    /// own.
    pub const PAGE: u64 = 0x1000;

    /// These nodes, by number.
    pub fn new(nodes: impl IntoIterator<Item = NumaNode>) -> Self {
        Self { nodes: nodes.into_iter().collect(), distances: BTreeMap::new() }
    }

    /// The same nodes, of which these two are so far from each other, in both directions.
    #[must_use]
    pub fn with_distance(mut self, one: u32, other: u32, distance: u8) -> Self {
        let nodes = (one.min(other), one.max(other));
        self.distances.remove(&nodes);
        // Else what is the same would differ.
        if self.distance(one, other) != distance {
            self.distances.insert(nodes, distance);
        }
        self
    }

    /// The nodes, by number.
    pub fn nodes(&self) -> &[NumaNode] {
        &self.nodes
    }

    /// How far two nodes are from each other.
    pub fn distance(&self, one: u32, other: u32) -> u8 {
        let default = if one == other { Self::LOCAL_DISTANCE } else { Self::REMOTE_DISTANCE };
        self.distances.get(&(one.min(other), one.max(other))).copied().unwrap_or(default)
    }

    /// The distances that are not the usual ones, by the lower and the higher node.
    pub fn unusual_distances(&self) -> impl Iterator<Item = ((u32, u32), u8)> + '_ {
        self.distances.iter().map(|(&nodes, &distance)| (nodes, distance))
    }

    /// Fails if these are not the nodes of a machine with so many processors and so many bytes of RAM.
    pub fn check(&self, cpus: u32, memory: u64) -> Result<(), NumaError> {
        let count = self.nodes.len();
        if count > Self::MAX_NODES {
            return Err(NumaError::TooMany { found: count });
        }
        for (number, node) in (0..).zip(&self.nodes) {
            if node.cpus == 0 && node.memory == 0 {
                return Err(NumaError::Empty { node: number });
            }
            if !node.memory.is_multiple_of(Self::PAGE) {
                return Err(NumaError::Memory { node: number, memory: node.memory });
            }
        }
        let found = self.nodes.iter().map(|node| u64::from(node.cpus)).sum();
        if found != u64::from(cpus) {
            return Err(NumaError::OtherCpus { found, cpus });
        }
        let found = self.memory();
        if found != memory {
            return Err(NumaError::OtherMemory { found, memory });
        }
        for ((from, to), distance) in self.unusual_distances() {
            if to as usize >= count {
                return Err(NumaError::NoSuchNode { from, to, nodes: count });
            }
            let possible = if from == to {
                distance == Self::LOCAL_DISTANCE
            } else {
                (Self::LOCAL_DISTANCE + 1..=Self::MAX_DISTANCE).contains(&distance)
            };
            if !possible {
                return Err(NumaError::Distance { from, to, distance });
            }
        }
        Ok(())
    }

    /// Number of processors of each package: of each node that has any.
    pub fn packages(&self) -> impl Iterator<Item = u32> + '_ {
        self.nodes.iter().map(|node| node.cpus).filter(|&cpus| cpus > 0)
    }

    /// Number of processors of all nodes.
    pub fn cpus(&self) -> u32 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.cpus))
    }

    /// Bytes of RAM of all nodes.
    pub fn memory(&self) -> u64 {
        self.nodes.iter().fold(0, |sum, node| sum.saturating_add(node.memory))
    }

    /// As [`check`](Self::check), for the RAM in these ranges: more may have come since the machine was made.
    pub(crate) fn check_ranges(&self, cpus: usize, ram: &[RamRange]) -> Result<(), NumaError> {
        let all = ram.iter().fold(0u64, |sum, range| sum.saturating_add(range.len));
        let own = self.memory();
        // Where no node has any, there is none that more could belong to.
        let memory = if own == 0 { all } else { all.min(own) };
        self.check(u32::try_from(cpus).unwrap_or(u32::MAX), memory)
    }

    /// The node of each processor.
    pub(crate) fn of_cpus(&self) -> impl Iterator<Item = u32> + '_ {
        (0..).zip(&self.nodes).flat_map(|(number, node)| std::iter::repeat_n(number, node.cpus as usize))
    }

    /// The parts of RAM, each with its node. What has come since the machine was made belongs to the last node that has any.
    pub(crate) fn parts(&self, ram: &[RamRange]) -> Vec<(u32, RamRange)> {
        let mut nodes = (0..).zip(&self.nodes).filter(|(_, node)| node.memory > 0).peekable();
        let mut parts = Vec::new();
        let mut taken = 0;
        for &(mut rest) in ram {
            while rest.len > 0 {
                let Some(&(number, node)) = nodes.peek() else { break };
                let left = node.memory - taken;
                let next = nodes.clone().nth(1).is_some();
                let len = if next { rest.len.min(left) } else { rest.len };
                parts.push((number, RamRange::new(rest.base, len)));
                rest = RamRange::new(rest.base.saturating_add(len), rest.len - len);
                taken += len.min(left);
                if next && taken == node.memory {
                    nodes.next();
                    taken = 0;
                }
            }
        }
        parts
    }
}

impl NumaNode {
    /// One with so many processors and so many bytes of RAM.
    pub const fn new(cpus: u32, memory: u64) -> Self {
        Self { cpus, memory }
    }
}

#[cfg(test)]
mod tests;
