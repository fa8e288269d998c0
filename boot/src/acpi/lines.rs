//! Interrupt lines: how each is triggered, and whether devices share it.

use acpi_tables::aml::Interrupt;

use crate::platform::{Node, NodeInterrupt, Platform, PlatformError, Trigger};

/// The interrupts of a platform.
pub(crate) struct Lines<'a> {
    /// By number; where nodes share one, in their order.
    lines: Vec<Line<'a>>,
    base: u32,
}

struct Line<'a> {
    number: u32,
    trigger: Trigger,
    node: &'a Node,
}

impl<'a> Lines<'a> {
    /// Sorts the interrupts of all nodes. Number 0 is the global system interrupt `base`.
    ///
    /// # Errors
    /// An edge-triggered interrupt that two nodes raise: the guest would lose edges.
    pub(crate) fn new(platform: &'a Platform, base: u32) -> Result<Self, PlatformError> {
        let mut lines = Vec::with_capacity(platform.nodes.len());
        for node in &platform.nodes {
            let line = |&NodeInterrupt { number, trigger }| Line { number, trigger, node };
            lines.extend(node.interrupts.iter().map(line));
        }
        lines.sort_by_key(|line| line.number);
        for (first, second) in lines.iter().zip(lines.iter().skip(1)) {
            if first.number == second.number && [first.trigger, second.trigger] != [Trigger::Level; 2] {
                let (number, first, second) = (first.number, first.node.id.clone(), second.node.id.clone());
                return Err(PlatformError::SharedEdge { number, first, second });
            }
        }
        Ok(Self { lines, base })
    }

    /// Returns true if more than one node raises this interrupt.
    fn is_shared(&self, number: u32) -> bool {
        let first = self.lines.partition_point(|line| line.number < number);
        self.lines.get(first + 1).is_some_and(|line| line.number == number)
    }

    /// The descriptor of a line, which is active-high.
    pub(crate) fn interrupt(&self, NodeInterrupt { number, trigger }: NodeInterrupt) -> Interrupt {
        let global = self.base.saturating_add(number);
        Interrupt::new(true, trigger == Trigger::Edge, false, self.is_shared(number), global)
    }

    /// The level-triggered interrupts, ascending.
    pub(crate) fn level_triggered(&self) -> impl Iterator<Item = u32> + '_ {
        let of_one_number = self.lines.chunk_by(|one, other| one.number == other.number);
        let first = of_one_number.filter_map(|lines| lines.first());
        first.filter(|line| line.trigger == Trigger::Level).map(|line| line.number)
    }
}
