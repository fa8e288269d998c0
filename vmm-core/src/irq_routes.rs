//! The table that says what each interrupt line (GSI) of a machine does.

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_MSI_VALID_DEVID, kvm_irq_routing_entry,
    kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use ossature_bus::MsiMessage;

use crate::VmError;
use crate::arch::{MESSAGES_HAVE_SENDERS, WIRED_LINES, WiredLine, wired_lines};

/// KVM's limit on the table (`KVM_MAX_IRQ_ROUTES`).
const MAX_ENTRIES: u32 = 4096;

/// The wired lines, which stay as KVM makes them, and the messages that were added.
#[derive(Debug, Default)]
pub(crate) struct IrqRoutes {
    /// By GSI, from [`WIRED_LINES`] on; holes are free.
    messages: Vec<Option<MsiMessage>>,
}

impl IrqRoutes {
    /// Adds a message, and returns its GSI.
    pub fn add(&mut self, message: MsiMessage) -> Result<u32, VmError> {
        let free = self.messages.iter().position(Option::is_none).unwrap_or(self.messages.len());
        let max = MAX_ENTRIES.saturating_sub(wired_lines().count() as u32);
        let index = u32::try_from(free).ok().filter(|index| *index < max);
        let index = index.ok_or(VmError::NoFreeRoute { max })?;
        match self.messages.get_mut(free) {
            Some(slot) => *slot = Some(message),
            None => self.messages.push(Some(message)),
        }
        Ok(WIRED_LINES + index)
    }

    fn slot(&mut self, gsi: u32) -> Option<&mut Option<MsiMessage>> {
        self.messages.get_mut(gsi.checked_sub(WIRED_LINES)? as usize)
    }

    /// Replaces the message of `gsi`, and returns the one before.
    pub fn set(&mut self, gsi: u32, message: MsiMessage) -> Result<MsiMessage, VmError> {
        let slot = self.slot(gsi).and_then(Option::as_mut);
        slot.map(|slot| std::mem::replace(slot, message)).ok_or(VmError::NoSuchRoute { gsi })
    }

    /// Frees `gsi`.
    pub fn remove(&mut self, gsi: u32) {
        if let Some(slot) = self.slot(gsi) {
            *slot = None;
        }
    }

    /// The whole table, as KVM takes it: KVM replaces the one before.
    pub fn entries(&self) -> Vec<kvm_irq_routing_entry> {
        let messages = (WIRED_LINES..)
            .zip(&self.messages)
            .filter_map(|(gsi, message)| message.map(|message| message_entry(gsi, message)));
        wired_lines().map(wired).chain(messages).collect()
    }
}

fn wired(line: WiredLine) -> kvm_irq_routing_entry {
    let (gsi, type_) = (line.gsi, KVM_IRQ_ROUTING_IRQCHIP);
    let mut entry = kvm_irq_routing_entry { gsi, type_, ..Default::default() };
    entry.u.irqchip = kvm_irq_routing_irqchip { irqchip: line.chip, pin: line.pin };
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
    if MESSAGES_HAVE_SENDERS {
        entry.flags = KVM_MSI_VALID_DEVID;
        entry.u.msi.__bindgen_anon_1.devid = message.requester;
    }
    entry
}

#[cfg(test)]
mod tests;
