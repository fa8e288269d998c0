//! How the UART's interrupt condition reaches the guest: as edges, or as the level of a line that others share.

use std::io;

use ossature_bus::Interrupt;

pub(super) struct InterruptLine {
    interrupt: Interrupt,
    level: bool,
    /// The level as it was last set.
    asserted: bool,
}

impl InterruptLine {
    /// A line that nothing has been raised on.
    pub(super) fn new(interrupt: Interrupt, level: bool) -> Self {
        Self { interrupt, level, asserted: false }
    }

    /// Raises `edge`, or sets the level to what `condition` is. A level that could not be set is set again the next time.
    pub(super) fn follow(&mut self, edge: bool, condition: impl FnOnce() -> bool) -> io::Result<()> {
        if !self.level {
            return if edge { self.interrupt.signal() } else { Ok(()) };
        }
        let condition = condition();
        if condition == self.asserted { Ok(()) } else { self.set_level(condition) }
    }

    /// Sets the level once more, for an interrupt controller that may have been restored in between.
    pub(super) fn renew(&mut self) -> io::Result<()> {
        if self.level { self.set_level(self.asserted) } else { Ok(()) }
    }

    fn set_level(&mut self, asserted: bool) -> io::Result<()> {
        let outcome = if asserted { self.interrupt.assert() } else { self.interrupt.deassert() };
        if outcome.is_ok() {
            self.asserted = asserted;
        }
        outcome
    }
}
