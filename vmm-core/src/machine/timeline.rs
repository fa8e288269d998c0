//! When a machine did what, from the first part to the first guest instruction.

use std::time::Instant;

/// One step on a machine's way to its guest, by the monotonic clock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildPhase {
    /// What was done: `layout`, `memory`, `vm`, `devices`, `payload`, `vcpus` or `start`, in this order.
    pub name: &'static str,
    /// When it began.
    pub start: Instant,
    /// When it was done.
    pub end: Instant,
}

/// Cuts time into phases that follow each other without a gap.
#[derive(Debug)]
pub(super) struct Stopwatch {
    last: Instant,
    phases: Vec<BuildPhase>,
}

impl Stopwatch {
    pub(super) fn start() -> Self {
        Self { last: Instant::now(), phases: Vec::with_capacity(7) }
    }

    /// Ends the phase `name`, which began where the last one ended.
    pub(super) fn lap(&mut self, name: &'static str) {
        let phase = BuildPhase { name, start: self.last, end: Instant::now() };
        self.last = phase.end;
        self.phases.push(phase);
    }

    pub(super) fn phases(self) -> Vec<BuildPhase> {
        self.phases
    }
}
