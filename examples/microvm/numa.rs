//! `--numa`: what it says, and the nodes that come of it.

use std::ffi::OsString;

use ossature::boot::{Numa, NumaNode};
use ossature::vmm::program::{KeyValueError, KeyValues};

use crate::args;
use crate::report::Usage;

pub const SYNTAX: &str = "cpus=N,memory=SIZE[,distances=D[:D]...]";

pub const HELP: &str = "\
A NUMA node of the guest; repeatable, the first is node 0. They have all vCPUs and all memory of the machine: without --cpus
and --memory, as many and as much as the nodes have together
  cpus=N             how many vCPUs [default: none]
  memory=SIZE        bytes, or a number with K, M or G [default: none]
  distances=D[:D]... how far it is to the nodes before it, 11 to 254; a node's own memory is 10 away [default: 20]";

/// A node as the command line has it.
#[derive(Clone, Debug)]
pub struct Node {
    node: NumaNode,
    /// To nodes 0, 1 and so on.
    distances: Vec<u8>,
}

impl Node {
    pub fn parse(text: OsString) -> Result<Self, KeyValueError> {
        let keys = KeyValues::parse_optional(&text, &["cpus=N", "memory=SIZE", "distances=D[:D]..."])?;
        let cpus = keys.parsed("cpus")?.unwrap_or(0);
        let memory = keys.parsed_by("memory", args::memory)?.unwrap_or(0);
        if cpus == 0 && memory == 0 {
            return Err(KeyValueError::Missing { key: "cpus=N or memory=SIZE" });
        }
        let distances = keys.parsed_by("distances", |text| text.split(':').map(str::parse).collect())?;
        Ok(Self { node: NumaNode::new(cpus, memory), distances: distances.unwrap_or_default() })
    }
}

/// The nodes, if there are any.
pub fn numa(nodes: &[Node]) -> Result<Option<Numa>, Usage> {
    let mut numa = Numa::new(nodes.iter().map(|node| node.node));
    for (number, node) in (0..).zip(nodes) {
        let given = node.distances.len();
        if given > number as usize {
            return Err(Usage(format!(
                "--numa distances: {given} of node {number}; there are {number} nodes before it"
            )));
        }
        for (other, &distance) in (0..).zip(&node.distances) {
            numa = numa.with_distance(number, other, distance);
        }
    }
    if nodes.is_empty() {
        return Ok(None);
    }
    for (sum, key) in [(numa.cpus().into(), "cpus=N"), (numa.memory(), "memory=SIZE")] {
        if sum == 0 {
            return Err(Usage(format!("--numa: no node has any; one of them needs {key}")));
        }
    }
    Ok(Some(numa))
}
