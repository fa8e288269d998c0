//! Interrupt lines: how each is triggered, and whether devices share it.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use acpi_tables::aml::Interrupt;

use crate::platform::{Node, NodeInterrupt, Platform, PlatformError, Trigger};

/// The interrupts of a platform, by number.
pub(crate) struct Lines<'a> {
    lines: BTreeMap<u32, Line<'a>>,
    base: u32,
}

struct Line<'a> {
    first: &'a Node,
    trigger: Trigger,
    is_shared: bool,
}

impl<'a> Lines<'a> {
    /// Sorts the interrupts of all nodes. Number 0 is the global system interrupt `base`.
    ///
    /// # Errors
    /// An edge-triggered interrupt that two nodes raise: the guest would lose edges.
    pub(crate) fn new(platform: &'a Platform, base: u32) -> Result<Self, PlatformError> {
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
                            return Err(PlatformError::SharedEdge { number, first, second });
                        }
                        line.is_shared = true;
                    }
                }
            }
        }
        Ok(Self { lines, base })
    }

    /// Returns true if more than one node raises this interrupt.
    fn is_shared(&self, number: u32) -> bool {
        self.lines.get(&number).is_some_and(|line| line.is_shared)
    }

    /// The descriptor of a line, which is active-high.
    pub(crate) fn interrupt(&self, NodeInterrupt { number, trigger }: NodeInterrupt) -> Interrupt {
        let global = self.base.saturating_add(number);
        Interrupt::new(true, trigger == Trigger::Edge, false, self.is_shared(number), global)
    }

    /// The level-triggered interrupts, ascending.
    pub(crate) fn level_triggered(&self) -> impl Iterator<Item = u32> + '_ {
        self.lines.iter().filter(|(_, line)| line.trigger == Trigger::Level).map(|(&number, _)| number)
    }
}
