//! The state of a GIC: its distributor, and each vCPU's private interrupts and CPU interface.

use std::fmt;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_REGS, KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
    KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
    KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT, KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT, VGIC_LEVEL_INFO_LINE_LEVEL,
};
use kvm_ioctls::{DeviceFd, VmFd};
use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use super::gic::{Controllers, Version};
use super::gic_registers::{
    GICD_ICFGR, GICD_IIDR, GICD_ISPENDR, GICD_TYPER, GICR_CTLR, GICR_TABLES, ICC_CTLR, ICC_CTLR_INDEX,
    MAX_INTERFACE,
};
use super::irq::{PRIVATE_IRQS, WIRED_LINES, line_number};
use super::spaces::cpu_id;
use super::sys::{Number, attribute, set_attribute};
use crate::VmError;
use crate::arch::pieces;
use crate::call::call;

const TYPE: Field = Field::new(1, "GICD_TYPER");
const IMPLEMENTER: Field = Field::new(2, "GICD_IIDR");
const DISTRIBUTOR: Field = Field::new(3, "distributor");
const VCPUS: Field = Field::new(4, "vCPUs");
const PRIVATE: Field = Field::new(1, "private interrupts");
const INTERFACE: Field = Field::new(2, "CPU interface");

/// More processors than a machine can have.
const MAX_VCPUS: usize = 4096;
/// The interrupts of software, of which a GICv2 knows who has sent them.
const SOFTWARE_IRQS: u32 = 0xffff;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct GicState {
    version: Version,
    /// What it can do, and who made it.
    type_: u32,
    implementer: u32,
    /// As many as [`Version::distributor`] names, and then the levels of the lines.
    distributor: Vec<u32>,
    vcpus: Vec<VcpuState>,
}

/// One vCPU's part.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VcpuState {
    /// As many as [`Version::private`] names, and then the levels of the private lines.
    private: Vec<u32>,
    /// As many as [`Version::interface`] names.
    interface: Vec<u64>,
}

/// Which levels the shared lines have after a state was written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Levels {
    /// Those of the state.
    Saved,
    /// Those that they had.
    Kept,
}

/// A GIC in the kernel.
#[derive(Clone, Copy)]
struct Gic<'a> {
    fd: &'a DeviceFd,
    version: Version,
}

impl<'a> Gic<'a> {
    fn of(controllers: &'a Controllers) -> Self {
        Self { fd: &controllers.gic, version: controllers.version }
    }

    fn get<T: Number>(self, group: u32, attr: u64) -> Result<T, VmError> {
        attribute(self.fd, group, attr).map_err(call("KVM_GET_DEVICE_ATTR of the GIC"))
    }

    fn set<T: Number>(self, group: u32, attr: u64, value: T) -> Result<(), VmError> {
        set_attribute(self.fd, group, attr, value).map_err(call("KVM_SET_DEVICE_ATTR of the GIC"))
    }

    fn distributor(self, offset: u64) -> Result<u32, VmError> {
        self.get(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset)
    }

    fn set_distributor(self, offset: u64, value: u32) -> Result<(), VmError> {
        self.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset, value)
    }

    /// Where a vCPU's private interrupts are.
    fn private_group(self) -> u32 {
        match self.version {
            Version::V2 => KVM_DEV_ARM_VGIC_GRP_DIST_REGS,
            Version::V3 => KVM_DEV_ARM_VGIC_GRP_REDIST_REGS,
        }
    }

    fn private(self, index: u32, offset: u64) -> Result<u32, VmError> {
        self.get(self.private_group(), of_vcpu(index, offset))
    }

    fn set_private(self, index: u32, offset: u64, value: u32) -> Result<(), VmError> {
        self.set(self.private_group(), of_vcpu(index, offset), value)
    }

    fn interface(self, index: u32, register: u64) -> Result<u64, VmError> {
        let attr = of_vcpu(index, register);
        match self.version {
            Version::V2 => self.get::<u32>(KVM_DEV_ARM_VGIC_GRP_CPU_REGS, attr).map(u64::from),
            Version::V3 => self.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr),
        }
    }

    fn set_interface(self, index: u32, register: u64, value: u64) -> Result<(), VmError> {
        let attr = of_vcpu(index, register);
        match self.version {
            Version::V2 => self.set(KVM_DEV_ARM_VGIC_GRP_CPU_REGS, attr, value as u32),
            Version::V3 => self.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, attr, value),
        }
    }

    /// What of a vCPU's interface says how many registers it has.
    fn interface_control(self, index: u32) -> Result<u64, VmError> {
        if self.version == Version::V2 { Ok(0) } else { self.interface(index, ICC_CTLR) }
    }
}

/// What is read and written of a vCPU, or of all of them. A GICv2 takes the index, which is the affinity of its few vCPUs.
fn of_vcpu(index: u32, attr: u64) -> u64 {
    u64::from(cpu_id(index)) << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | attr
}

/// The attribute of 32 lines' levels from one on.
fn level_info(first: u64) -> u64 {
    u64::from(VGIC_LEVEL_INFO_LINE_LEVEL) << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT | first
}

impl GicState {
    /// Reads the state of a GIC with so many vCPUs, none of which runs.
    pub(super) fn read(controllers: &Controllers, vcpus: u32) -> Result<Self, VmError> {
        let gic = Gic::of(controllers);
        let registers = gic.version.distributor().into_iter().map(|offset| gic.distributor(offset));
        let levels = gic.version.lines().into_iter();
        let levels = levels.map(|line| gic.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, level_info(line)));
        Ok(Self {
            version: gic.version,
            type_: gic.distributor(GICD_TYPER)?,
            implementer: gic.distributor(GICD_IIDR)?,
            distributor: registers.chain(levels).collect::<Result<_, _>>()?,
            vcpus: (0..vcpus).map(|index| VcpuState::read(gic, index)).collect::<Result<_, _>>()?,
        })
    }

    /// Fails if it is not the state of such a GIC with so many vCPUs.
    pub(super) fn check(&self, controllers: &Controllers, vcpus: u32) -> Result<(), VmError> {
        let gic = Gic::of(controllers);
        let invalid = |reason| Err(VmError::InvalidState { part: "GIC", reason });
        if self.version != gic.version {
            return Err(VmError::MissingFeature { feature: format!("a GIC{}", self.version) });
        }
        if self.vcpus.len() != vcpus as usize {
            return invalid("of a machine with another number of vCPUs");
        }
        if gic.distributor(GICD_TYPER)? != self.type_ {
            return invalid("not the same as the one that this machine has");
        }
        Ok(())
    }

    /// Fails if an interface of such a GIC can do less than the state's, or something else.
    pub(super) fn check_interfaces(&self, controllers: &Controllers) -> Result<(), VmError> {
        let gic = Gic::of(controllers);
        (0..).zip(&self.vcpus).try_for_each(|(index, vcpu)| {
            let (wanted, here) = (vcpu.control(gic.version), gic.interface_control(index)?);
            let feature = || format!("a GIC with an ICC_CTLR_EL1 of {wanted:#x}: this one has {here:#x}");
            is_able(here, wanted).then_some(()).ok_or_else(|| VmError::MissingFeature { feature: feature() })
        })
    }

    /// Makes a GIC that it [is one](Self::check) of one of the same revision. Another maker's is refused.
    pub(super) fn write_revision(&self, controllers: &Controllers) -> Result<(), VmError> {
        Gic::of(controllers).set_distributor(GICD_IIDR, self.implementer).map_err(|_| {
            VmError::MissingFeature { feature: format!("a GIC with the GICD_IIDR {:#x}", self.implementer) }
        })
    }

    /// Writes the state to a GIC [of its revision](Self::write_revision), none of whose vCPUs runs.
    pub(super) fn write(
        &self,
        (vm, controllers): (&VmFd, &Controllers),
        levels: Levels,
    ) -> Result<(), VmError> {
        let gic = Gic::of(controllers);
        for offset in gic.version.distributor_clears() {
            gic.set_distributor(offset, u32::MAX)?;
        }
        let mut values = self.distributor.iter();
        for (offset, value) in gic.version.distributor().into_iter().zip(values.by_ref()) {
            gic.set_distributor(offset, self.shared().to_write(offset, *value))?;
        }
        if levels == Levels::Saved {
            self.write_levels(vm, gic, values)?;
        }
        (0..).zip(&self.vcpus).try_for_each(|(index, vcpu)| vcpu.write(gic, index, levels))
    }

    /// Writes the levels of the shared lines.
    fn write_levels<'a>(
        &self,
        vm: &VmFd,
        gic: Gic<'_>,
        levels: impl Iterator<Item = &'a u32>,
    ) -> Result<(), VmError> {
        if self.version == Version::V2 {
            let shared = self.shared();
            let mut lines = (0..WIRED_LINES).map(|line| (line_number(line), shared.is_asserted(line)));
            return lines.try_for_each(|(line, asserted)| {
                vm.set_irq_line(line, asserted).map_err(call("KVM_IRQ_LINE"))
            });
        }
        let mut lines = gic.version.lines().into_iter().zip(levels);
        lines.try_for_each(|(line, value)| gic.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, level_info(line), *value))
    }

    fn shared(&self) -> Registers<'_> {
        Registers { version: self.version, offsets: self.version.distributor(), values: &self.distributor }
    }

    /// The version of the GIC whose state it is.
    pub(super) fn version(&self) -> Version {
        self.version
    }

    /// The state as the fields of a record.
    pub(super) fn encode(&self, fields: &mut Encoder) {
        fields.u32(TYPE, self.type_).u32(IMPLEMENTER, self.implementer);
        fields.bytes(DISTRIBUTOR, &words(&self.distributor));
        fields.list(VCPUS, &self.vcpus, |fields, vcpu| {
            let interface: Vec<_> = vcpu.interface.iter().flat_map(|value| value.to_le_bytes()).collect();
            fields.bytes(PRIVATE, &words(&vcpu.private)).bytes(INTERFACE, &interface);
        });
    }

    /// The state of a GIC of a version that has these fields.
    pub(super) fn decode(fields: &mut Decoder<'_>, version: Version) -> Result<Self, StateError> {
        let type_ = fields.u32(TYPE)?;
        let implementer = fields.u32(IMPLEMENTER)?;
        let count = version.distributor().len() + version.lines().len();
        let distributor = numbers(fields, DISTRIBUTOR, "distributor", count, u32::from_le_bytes)?;
        let vcpus = fields.list(VCPUS, MAX_VCPUS, |fields| {
            let count = version.private().len() + usize::from(version == Version::V3);
            let private = numbers(fields, PRIVATE, "private interrupts", count, u32::from_le_bytes)?;
            let bytes = fields.bytes(INTERFACE, MAX_INTERFACE * size_of::<u64>())?;
            let interface = pieces(bytes, "CPU interface", u64::from_le_bytes)?;
            let control = interface.get(ICC_CTLR_INDEX);
            let expected = control.map(|control| version.interface(*control).len());
            if expected != Some(interface.len()) {
                let reason = "there are not as many registers as it has priorities";
                return Err(StateError::Inconsistent { field: "CPU interface", reason });
            }
            if version == Version::V2 && interface.iter().any(|value| *value > u32::MAX.into()) {
                let reason = "those of a GICv2 have 32 bits";
                return Err(StateError::Inconsistent { field: "CPU interface", reason });
            }
            Ok(VcpuState { private, interface })
        })?;
        Ok(Self { version, type_, implementer, distributor, vcpus })
    }
}

/// Those of shared interrupts, or of a vCPU's own.
struct Registers<'a> {
    version: Version,
    offsets: Vec<u64>,
    values: &'a [u32],
}

impl Registers<'_> {
    /// What is written to one of them. A level-triggered line of a GICv2 is pending for as long as it is asserted: one that was
    /// set pending as well would stay so behind its device's back.
    fn to_write(&self, offset: u64, value: u32) -> u32 {
        let pending = GICD_ISPENDR..GICD_ISPENDR + u64::from(PRIVATE_IRQS + WIRED_LINES) / 8;
        if self.version == Version::V3 || !pending.contains(&offset) {
            return value;
        }
        let first = (offset - GICD_ISPENDR) as u32 * 8;
        (0..32).filter(|bit| self.is_level(first + bit)).fold(value, |value, bit| value & !(1 << bit))
    }

    /// Returns true if a shared line of a GICv2 is asserted, which KVM does not tell from pending.
    fn is_asserted(&self, line: u32) -> bool {
        let irq = PRIVATE_IRQS + line;
        self.is_level(irq) && self.bit(GICD_ISPENDR, irq)
    }

    fn is_level(&self, irq: u32) -> bool {
        !self.bit(GICD_ICFGR, 2 * irq + 1)
    }

    /// A bit of the registers from `bank` on.
    fn bit(&self, bank: u64, bit: u32) -> bool {
        let offset = bank + u64::from(bit / 32 * 4);
        let mut registers = self.offsets.iter().zip(self.values);
        registers.any(|(at, value)| *at == offset && value >> (bit % 32) & 1 != 0)
    }
}

impl VcpuState {
    fn read(gic: Gic<'_>, index: u32) -> Result<Self, VmError> {
        let register = |offset| {
            let value = gic.private(index, offset)?;
            // Who has sent interrupts of software says which of them are pending.
            let by_sender = gic.version == Version::V2 && offset == GICD_ISPENDR;
            Ok(if by_sender { value & !SOFTWARE_IRQS } else { value })
        };
        let mut private: Vec<u32> =
            gic.version.private().into_iter().map(register).collect::<Result<_, VmError>>()?;
        if gic.version == Version::V3 {
            private.push(gic.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, of_vcpu(index, level_info(0)))?);
        }
        let interface = gic.version.interface(gic.interface_control(index)?);
        let interface = interface.into_iter().map(|register| gic.interface(index, register));
        Ok(Self { private, interface: interface.collect::<Result<_, _>>()? })
    }

    /// What says how many registers the interface has; of a GICv2, which has always the same, nothing.
    fn control(&self, version: Version) -> u64 {
        if version == Version::V2 { 0 } else { self.interface.get(ICC_CTLR_INDEX).copied().unwrap_or(0) }
    }

    fn write(&self, gic: Gic<'_>, index: u32, levels: Levels) -> Result<(), VmError> {
        if gic.version == Version::V3 {
            // Message interrupts off: only then the tables can be set.
            gic.set_private(index, GICR_CTLR, 0)?;
        }
        for offset in gic.version.private_clears() {
            gic.set_private(index, offset, u32::MAX)?;
        }
        let own = Registers { version: gic.version, offsets: gic.version.private(), values: &self.private };
        let mut values = self.private.iter();
        for (offset, value) in own.offsets.iter().zip(values.by_ref()) {
            // What a new one has of the tables is not what can be written to it.
            if !GICR_TABLES.contains(offset) || gic.private(index, *offset)? != *value {
                gic.set_private(index, *offset, own.to_write(*offset, *value))?;
            }
        }
        for value in values {
            gic.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, of_vcpu(index, level_info(0)), *value)?;
        }
        // A reset leaves it what it can do: what another host has saved may do less than what this one makes. It has no active
        // priorities, so it does not matter whose the zeros are that are left out.
        let control = match levels {
            Levels::Saved => self.control(gic.version),
            Levels::Kept => with_abilities_of(gic.interface_control(index)?, self.control(gic.version)),
        };
        for (register, value) in gic.version.interface(control).into_iter().zip(&self.interface) {
            gic.set_interface(index, register, if register == ICC_CTLR { control } else { *value })?;
        }
        Ok(())
    }
}

/// What ICC_CTLR_EL1 says of an interface's abilities: how many bits priorities and interrupts have, of which it can be told to
/// use fewer; and whether it knows SErrors and the third level of affinities.
const NUMBERS: [u64; 2] = [7 << 8, 7 << 11];
const KINDS: u64 = 0b11 << 14;

/// Returns true if an interface with the ICC_CTLR_EL1 `here` can have that of another one. There are 16 priorities at least
/// (IHI 0069, 4.8).
fn is_able(here: u64, wanted: u64) -> bool {
    let has_priorities = here == 0 || wanted >> 8 & 7 >= 3;
    has_priorities
        && NUMBERS.iter().all(|number| wanted & number <= here & number)
        && wanted & KINDS == here & KINDS
}

/// An ICC_CTLR_EL1 with the abilities that another one says.
fn with_abilities_of(other: u64, control: u64) -> u64 {
    let abilities = NUMBERS.iter().fold(KINDS, |all, number| all | number);
    other & abilities | control & !abilities
}

impl fmt::Debug for GicState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GicState").field("vcpus", &self.vcpus.len()).finish_non_exhaustive()
    }
}

fn words(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Reads a field of exactly so many numbers.
fn numbers<T, const N: usize>(
    fields: &mut Decoder<'_>,
    field: Field,
    name: &'static str,
    count: usize,
    number: impl Fn([u8; N]) -> T,
) -> Result<Vec<T>, StateError> {
    let numbers = pieces(fields.bytes(field, count * N)?, name, number)?;
    if numbers.len() == count { Ok(numbers) } else { Err(StateError::Truncated { field: name }) }
}

#[cfg(test)]
mod tests;
