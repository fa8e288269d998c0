//! What the interrupt lines (GSIs) of a machine are connected to.

use kvm_bindings::{KVM_ARM_IRQ_TYPE_SHIFT, KVM_ARM_IRQ_TYPE_SPI};

/// Shared peripheral interrupts: the GSIs below are wired, those from here on are messages.
pub(crate) const WIRED_LINES: u32 = 96;
/// The interrupt ids of a GIC that are each processor's own; shared peripheral interrupts follow.
pub(crate) const PRIVATE_IRQS: u32 = 32;

/// The ITS tells apart who sends a message.
pub(crate) const MESSAGES_HAVE_SENDERS: bool = true;

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

/// What `KVM_IRQ_LINE` calls a line.
pub(crate) fn line_number(gsi: u32) -> u32 {
    KVM_ARM_IRQ_TYPE_SPI << KVM_ARM_IRQ_TYPE_SHIFT | (PRIVATE_IRQS + gsi)
}
