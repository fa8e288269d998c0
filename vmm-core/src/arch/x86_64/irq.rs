//! What the interrupt lines (GSIs) of a machine are connected to.

use kvm_bindings::{KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE};

/// Pins of the I/O APIC: the GSIs below are wired, those from here on are messages.
pub(crate) const WIRED_LINES: u32 = 24;
/// Pins of the two PICs together, and of one.
const PIC_PINS: u32 = 16;
const PIC_CHIP_PINS: u32 = 8;

/// It does not matter who sends a message.
pub(crate) const MESSAGES_HAVE_SENDERS: bool = false;

/// A line, and the pin of an interrupt controller that it is connected to.
pub(crate) struct WiredLine {
    pub(crate) gsi: u32,
    pub(crate) chip: u32,
    pub(crate) pin: u32,
}

/// The wired lines as KVM makes them: line n is pin n of the I/O APIC, the first 16 also of the PICs.
pub(crate) fn wired_lines() -> impl Iterator<Item = WiredLine> {
    let pics = (0..PIC_PINS).map(|gsi| {
        let chip = if gsi < PIC_CHIP_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
        WiredLine { gsi, chip, pin: gsi % PIC_CHIP_PINS }
    });
    let ioapic = (0..WIRED_LINES).map(|gsi| WiredLine { gsi, chip: KVM_IRQCHIP_IOAPIC, pin: gsi });
    pics.chain(ioapic)
}

/// What `KVM_IRQ_LINE` calls a line.
pub(crate) fn line_number(gsi: u32) -> u32 {
    gsi
}
