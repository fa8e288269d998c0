//! Interrupt lines: how each is triggered, and whether devices share it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use acpi_tables::aml::Interrupt;

use super::error::AcpiError;
use crate::platform::{Node, NodeInterrupt, Platform, Trigger};

/// The interrupts of a platform, by number.
pub(crate) struct Lines<'a>(BTreeMap<u32, Line<'a>>);

struct Line<'a> {
    first: &'a Node,
    trigger: Trigger,
    is_shared: bool,
}

impl<'a> Lines<'a> {
    /// Sorts the interrupts of all nodes.
    ///
    /// # Errors
    /// An edge-triggered interrupt that two nodes raise: the guest would lose edges.
    pub(crate) fn new(platform: &'a Platform) -> Result<Self, AcpiError> {
        let mut lines = BTreeMap::new();
        for node in &platform.nodes {
            for &NodeInterrupt { number, trigger } in &node.interrupts {
                match lines.entry(number) {
                    Entry::Vacant(free) => {
                        free.insert(Line { first: node, trigger, is_shared: false });
                    }
                    Entry::Occupied(mut taken) => {
                        let line = taken.get_mut();
                        if [line.trigger, trigger] != [Trigger::Level; 2] {
                            let (first, second) = (line.first.id.clone(), node.id.clone());
                            return Err(AcpiError::SharedEdge { number, first, second });
                        }
                        line.is_shared = true;
                    }
                }
            }
        }
        Ok(Self(lines))
    }

    /// Returns true if more than one node raises this interrupt.
    fn is_shared(&self, number: u32) -> bool {
        self.0.get(&number).is_some_and(|line| line.is_shared)
    }

    /// The descriptor of a line, which is active-high.
    pub(crate) fn interrupt(&self, NodeInterrupt { number, trigger }: NodeInterrupt) -> Interrupt {
        Interrupt::new(true, trigger == Trigger::Edge, false, self.is_shared(number), number)
    }

    /// The level-triggered interrupts, ascending.
    pub(crate) fn level_triggered(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().filter(|(_, line)| line.trigger == Trigger::Level).map(|(&number, _)| number)
    }
}
