//! The table that says what each interrupt line (GSI) of a machine does.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, kvm_irq_routing_entry, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};

use crate::{MsiMessage, VmError};

/// Pins of the I/O APIC: the GSIs below are wired, those from here on are messages.
const IOAPIC_PINS: u32 = 24;
/// Pins of the two PICs together, and of one.
const PIC_PINS: u32 = 16;
const PIC_CHIP_PINS: u32 = 8;

/// KVM's limit on the table (`KVM_MAX_IRQ_ROUTES`), less what the wired lines take.
const MAX_MESSAGES: u32 = 4096 - IOAPIC_PINS - PIC_PINS;

/// The wired lines, which stay as KVM makes them (line n is pin n of the I/O APIC, the first 16 also of the
/// PICs), and the messages that were added.
#[derive(Debug, Default)]
pub(crate) struct IrqRoutes {
    messages: Vec<MsiMessage>,
}

impl IrqRoutes {
    /// Adds a message, and returns its GSI.
    pub fn add(&mut self, message: MsiMessage) -> Result<u32, VmError> {
        let index = u32::try_from(self.messages.len()).unwrap_or(MAX_MESSAGES);
        if index >= MAX_MESSAGES {
            return Err(VmError::NoFreeRoute { max: MAX_MESSAGES });
        }
        self.messages.push(message);
        Ok(IOAPIC_PINS + index)
    }

    /// Replaces the message of `gsi`, and returns the one before.
    pub fn set(&mut self, gsi: u32, message: MsiMessage) -> Result<MsiMessage, VmError> {
        gsi.checked_sub(IOAPIC_PINS)
            .and_then(|index| self.messages.get_mut(index as usize))
            .map(|slot| std::mem::replace(slot, message))
            .ok_or(VmError::NoSuchRoute { gsi })
    }

    /// Takes the last message back.
    pub fn remove_last(&mut self) {
        self.messages.pop();
    }

    /// The whole table, as KVM takes it: KVM replaces the one before.
    pub fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let pics = (0..PIC_PINS).map(|gsi| {
            let chip = if gsi < PIC_CHIP_PINS { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            wired(gsi, chip, gsi % PIC_CHIP_PINS)
        });
        let ioapic = (0..IOAPIC_PINS).map(|gsi| wired(gsi, KVM_IRQCHIP_IOAPIC, gsi));
        let messages = (IOAPIC_PINS..).zip(&self.messages).map(|(gsi, message)| message_entry(gsi, *message));
        pics.chain(ioapic).chain(messages).collect()
    }
}

fn wired(gsi: u32, chip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: chip, pin };
    entry
}

fn message_entry(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi = kvm_irq_routing_msi {
        address_lo: message.address as u32,
        address_hi: (message.address >> 32) as u32,
        data: message.data,
        ..Default::default()
    };
    entry
}

#[cfg(test)]
mod tests;
