//! What the interrupt lines (GSIs) of a machine are connected to.

/// Shared peripheral interrupts: the GSIs below are wired, those from here on are messages.
pub(crate) const WIRED_LINES: u32 = 96;

/// A line, and the pin of an interrupt controller that it is connected to.
pub(crate) struct WiredLine {
    pub(crate) gsi: u32,
    pub(crate) chip: u32,
    pub(crate) pin: u32,
}

/// The wired lines as KVM makes them: line n is shared peripheral interrupt n of the GIC.
pub(crate) fn wired_lines() -> impl Iterator<Item = WiredLine> {
    (0..WIRED_LINES).map(|gsi| WiredLine { gsi, chip: 0, pin: gsi })
}
