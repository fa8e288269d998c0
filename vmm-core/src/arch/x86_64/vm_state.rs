//! What KVM keeps of a machine beside its vCPUs: interrupt controllers, timer, clock.

use std::fmt;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, kvm_clock_data, kvm_irqchip,
    kvm_pit_state2,
};
use kvm_ioctls::VmFd;
use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::plain::Plain;
use super::setup::Controllers;
use crate::arch::wall_clock;
use crate::call::call;
use crate::{VmConfig, VmError};

const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

const KIND: &str = "org.ossature.vm.x86_64";
const VERSION: u16 = 1;
const CLOCK: Field = Field::new(1, "clock");
const CHIP_FIELDS: [Field; CHIPS.len()] =
    [Field::new(2, "first PIC"), Field::new(3, "second PIC"), Field::new(4, "I/O APIC")];
const PIT: Field = Field::new(5, "timer");
/// Nanoseconds since 1970. Older readers may do without.
const SAVED_AT: Field = Field::new(0x8000, "wall-clock time");

/// The interrupt controllers and the timer.
#[derive(Clone)]
struct Chips {
    chips: [kvm_irqchip; CHIPS.len()],
    pit: Option<kvm_pit_state2>,
}

/// See [`crate::VmState`].
#[derive(Clone)]
pub(crate) struct VmParts {
    chips: Option<Chips>,
    /// Nanoseconds of the clock that guests with kvmclock see.
    clock: u64,
    /// The host's wall clock at that moment, in nanoseconds since 1970; older states lack it.
    saved_at: Option<u64>,
}

impl VmParts {
    /// Reads the state of a machine that has these.
    pub(crate) fn read(vm: &VmFd, _: Option<&Controllers>, config: &VmConfig) -> Result<Self, VmError> {
        let clock = vm.get_clock().map_err(call("KVM_GET_CLOCK"))?.clock;
        let chips = config.has_irqchip().then(|| Chips::read(vm, config.arch.pit)).transpose()?;
        Ok(Self { chips, clock, saved_at: wall_clock() })
    }

    /// Writes the state to a machine that has the same.
    pub(crate) fn write(
        &self,
        vm: &VmFd,
        controllers: Option<&Controllers>,
        config: &VmConfig,
    ) -> Result<(), VmError> {
        self.write_chips(vm, controllers, config)?;
        let clock = kvm_clock_data { clock: self.clock, ..Default::default() };
        vm.set_clock(&clock).map_err(call("KVM_SET_CLOCK"))
    }

    /// The state as bytes.
    pub(crate) fn to_saved(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        fields.u64(CLOCK, self.clock);
        if let Some(chips) = &self.chips {
            for (field, chip) in CHIP_FIELDS.iter().zip(&chips.chips) {
                fields.bytes(*field, chip.to_bytes());
            }
            if let Some(pit) = &chips.pit {
                fields.bytes(PIT, pit.to_bytes());
            }
        }
        if let Some(saved_at) = self.saved_at {
            fields.u64(SAVED_AT, saved_at);
        }
        fields.finish()
    }

    /// The state that has these bytes.
    pub(crate) fn from_saved(state: &SavedState<'_>) -> Result<Self, StateError> {
        let mut fields = Decoder::new(state, KIND, 1..=VERSION)?;
        let clock = fields.u64(CLOCK)?;
        let mut found = Vec::new();
        for (field, id) in CHIP_FIELDS.into_iter().zip(CHIPS) {
            let Some(chip) = fields.optional(field, kvm_irqchip::decode)? else { continue };
            if chip.chip_id != id {
                return Err(StateError::Value { field: "interrupt controllers", value: chip.chip_id.into() });
            }
            found.push(chip);
        }
        let pit = fields.optional(PIT, Plain::decode)?;
        let saved_at = fields.optional(SAVED_AT, Decoder::u64)?;
        fields.finish()?;
        let missing = StateError::Inconsistent { field: "interrupt controllers", reason: "some are missing" };
        let chips = match <[kvm_irqchip; 3]>::try_from(found) {
            Ok(chips) => Some(Chips { chips, pit }),
            Err(none) if none.is_empty() && pit.is_none() => None,
            Err(_) => return Err(missing),
        };
        Ok(Self { chips, clock, saved_at })
    }

    /// How long ago it was read, in nanoseconds of the host's wall clock. `None` if it does not say.
    pub(crate) fn age(&self) -> Option<u64> {
        Some(wall_clock()?.saturating_sub(self.saved_at?))
    }

    /// Has the guest's clock be so many nanoseconds later.
    pub(crate) fn advance(&mut self, by: u64) {
        self.clock = self.clock.saturating_add(by);
    }

    /// As [`write`](Self::write), and lets the clock go on.
    pub(crate) fn write_chips(
        &self,
        vm: &VmFd,
        _: Option<&Controllers>,
        config: &VmConfig,
    ) -> Result<(), VmError> {
        let (irqchip, pit) = (config.has_irqchip(), config.has_irqchip() && config.arch.pit);
        let has_pit = self.chips.as_ref().is_some_and(|chips| chips.pit.is_some());
        if self.chips.is_some() != irqchip || has_pit != pit {
            let reason = "not those that this machine has";
            return Err(VmError::InvalidState { part: "interrupt controllers", reason });
        }
        self.chips.as_ref().map_or(Ok(()), |chips| chips.write(vm))
    }
}

impl Chips {
    fn read(vm: &VmFd, pit: bool) -> Result<Self, VmError> {
        let mut chips = CHIPS.map(|chip_id| kvm_irqchip { chip_id, ..Default::default() });
        for chip in &mut chips {
            vm.get_irqchip(chip).map_err(call("KVM_GET_IRQCHIP"))?;
        }
        let pit = pit.then(|| vm.get_pit2().map_err(call("KVM_GET_PIT2"))).transpose()?;
        Ok(Self { chips, pit })
    }

    fn write(&self, vm: &VmFd) -> Result<(), VmError> {
        for chip in &self.chips {
            vm.set_irqchip(chip).map_err(call("KVM_SET_IRQCHIP"))?;
        }
        self.pit.as_ref().map_or(Ok(()), |pit| vm.set_pit2(pit).map_err(call("KVM_SET_PIT2")))
    }
}

impl PartialEq for Chips {
    fn eq(&self, other: &Self) -> bool {
        let bytes = |chips: &Self| chips.chips.map(|chip| chip.to_bytes().to_vec());
        bytes(self) == bytes(other) && self.pit == other.pit
    }
}

impl PartialEq for VmParts {
    fn eq(&self, other: &Self) -> bool {
        (&self.chips, self.clock) == (&other.chips, other.clock)
    }
}

impl Eq for VmParts {}

impl fmt::Debug for VmParts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VmParts")
            .field("irqchip", &self.chips.is_some())
            .field("clock", &self.clock)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
