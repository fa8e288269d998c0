//! What KVM keeps of a machine beside its vCPUs: the interrupt controllers.

use kvm_bindings::{KVM_DEV_ARM_VGIC_GRP_CTRL, KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES};
use kvm_ioctls::VmFd;
use ossature_bus::state::{Decoder, Encoder, Field, SavedState, StateError};

use super::gic::{Controllers, Version};
use super::gic_state::{GicState, Levels};
use super::its_state::ItsState;
use super::sys::set_attribute;
use crate::arch::wall_clock;
use crate::call::call;
use crate::{VmConfig, VmError};

const KIND: &str = "org.ossature.vm.aarch64";
const VERSION: u16 = 1;
const GIC: Field = Field::new(1, "GIC");
const ITS: Field = Field::new(2, "ITS");
const GIC_V2: Field = Field::new(3, "GICv2");
/// Nanoseconds since 1970.
const SAVED_AT: Field = Field::new(0x8000, "wall-clock time");

/// What the interrupt controllers are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Chips {
    gic: GicState,
    /// That of a GICv3.
    its: Option<ItsState>,
}

impl Chips {
    /// Reads them. What of them is in guest memory is written there: what is read or logged of that afterwards has it.
    fn read(controllers: &Controllers, vcpus: u32) -> Result<Self, VmError> {
        if controllers.its.is_some() {
            let save = KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES.into();
            set_attribute(&controllers.gic, KVM_DEV_ARM_VGIC_GRP_CTRL, save, 0u64)
                .map_err(call("KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES"))?;
        }
        let gic = GicState::read(controllers, vcpus)?;
        Ok(Self { gic, its: controllers.its.as_ref().map(ItsState::read).transpose()? })
    }

    /// Writes them, once guest memory is what it was; with the levels of lines, unless devices go on to say them.
    fn write(
        &self,
        (vm, controllers): (&VmFd, &Controllers),
        vcpus: u32,
        levels: Levels,
    ) -> Result<(), VmError> {
        self.gic.check(controllers, vcpus)?;
        if levels == Levels::Saved {
            self.gic.check_interfaces(controllers)?;
        }
        // First: what others mean depends on the revision, and a host that has not got it refuses it.
        self.gic.write_revision(controllers)?;
        if let (Some(state), Some(its)) = (&self.its, &controllers.its) {
            state.write_revision(its)?;
            // Messages that it knows would become pending by the other's tables.
            its.reset()?;
        }
        self.gic.write((vm, controllers), levels)?;
        match (&self.its, &controllers.its) {
            (Some(state), Some(its)) => state.write(its),
            _ => Ok(()),
        }
    }
}

/// See [`crate::VmState`].
#[derive(Clone, Debug)]
pub(crate) struct VmParts {
    gic: Option<Chips>,
    /// The host's wall clock when it was read, in nanoseconds since 1970.
    saved_at: Option<u64>,
}

impl VmParts {
    /// Reads the state of a machine that has these.
    pub(crate) fn read(
        _: &VmFd,
        controllers: Option<&Controllers>,
        config: &VmConfig,
    ) -> Result<Self, VmError> {
        let gic = controllers.map(|controllers| Chips::read(controllers, config.cpus)).transpose()?;
        Ok(Self { gic, saved_at: wall_clock() })
    }

    /// Writes the state to a machine that has the same.
    pub(crate) fn write(
        &self,
        vm: &VmFd,
        controllers: Option<&Controllers>,
        config: &VmConfig,
    ) -> Result<(), VmError> {
        self.write_with(Levels::Saved, vm, controllers, config)
    }

    /// How long ago it was read, in nanoseconds of the host's wall clock. `None` if it does not say.
    pub(crate) fn age(&self) -> Option<u64> {
        Some(wall_clock()?.saturating_sub(self.saved_at?))
    }

    /// Nothing: the guest's clock is a counter of its vCPUs.
    pub(crate) fn advance(&mut self, _: u64) {}

    /// The same for a reset: lines that devices assert still are.
    pub(crate) fn write_chips(
        &self,
        vm: &VmFd,
        controllers: Option<&Controllers>,
        config: &VmConfig,
    ) -> Result<(), VmError> {
        self.write_with(Levels::Kept, vm, controllers, config)
    }

    fn write_with(
        &self,
        levels: Levels,
        vm: &VmFd,
        controllers: Option<&Controllers>,
        config: &VmConfig,
    ) -> Result<(), VmError> {
        match (&self.gic, controllers) {
            (Some(chips), Some(controllers)) => chips.write((vm, controllers), config.cpus, levels),
            (None, None) => Ok(()),
            _ => {
                let reason = "not those that this machine has";
                Err(VmError::InvalidState { part: "interrupt controllers", reason })
            }
        }
    }

    /// The state as bytes.
    pub(crate) fn to_saved(&self) -> SavedState<'static> {
        let mut fields = Encoder::new(KIND, VERSION);
        if let Some(Chips { gic, its }) = &self.gic {
            // Of one version, under its own name. An ITS belongs to version 3.
            let place = if gic.version() == Version::V2 { GIC_V2 } else { GIC };
            fields.nested(place, |fields| gic.encode(fields));
            if let Some(its) = its {
                fields.nested(ITS, |fields| its.encode(fields));
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
        let decode = |version| move |fields: &mut Decoder<'_>| GicState::decode(fields, version);
        let gic = fields.optional(GIC, |fields, field| fields.nested(field, decode(Version::V3)))?;
        let its = fields.optional(ITS, |fields, field| fields.nested(field, ItsState::decode))?;
        let gic_v2 = fields.optional(GIC_V2, |fields, field| fields.nested(field, decode(Version::V2)))?;
        let saved_at = fields.optional(SAVED_AT, Decoder::u64)?;
        fields.finish()?;
        let gic = match (gic, its, gic_v2) {
            (Some(gic), its @ Some(_), None) => Some(Chips { gic, its }),
            (None, None, Some(gic)) => Some(Chips { gic, its: None }),
            (None, None, None) => None,
            _ => {
                let reason = "a GICv3 comes with its ITS, and a GICv2 alone";
                return Err(StateError::Inconsistent { field: "GIC", reason });
            }
        };
        Ok(Self { gic, saved_at })
    }
}

impl PartialEq for VmParts {
    fn eq(&self, other: &Self) -> bool {
        self.gic == other.gic
    }
}

impl Eq for VmParts {}

#[cfg(test)]
mod tests;
