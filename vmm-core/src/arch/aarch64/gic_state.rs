//! The state of a GICv3: its distributor, and each vCPU's redistributor and CPU interface.

use std::fmt;

use kvm_bindings::{
    KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO,
    KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT,
    KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT, VGIC_LEVEL_INFO_LINE_LEVEL,
};
use kvm_ioctls::DeviceFd;
use ossature_bus::state::{Decoder, Encoder, Field, StateError};

use super::irq::{PRIVATE_IRQS, WIRED_LINES};
use super::spaces::cpu_id;
use super::sys::{Number, attribute, set_attribute};
use crate::VmError;
use crate::arch::pieces;
use crate::call::call;

const TYPE: Field = Field::new(1, "GICD_TYPER");
const IMPLEMENTER: Field = Field::new(2, "GICD_IIDR");
const DISTRIBUTOR: Field = Field::new(3, "distributor");
const VCPUS: Field = Field::new(4, "redistributors");
const REDISTRIBUTOR: Field = Field::new(1, "redistributor");
const INTERFACE: Field = Field::new(2, "CPU interface");

/// Registers of the distributor: control, what it is, who made it.
const GICD_CTLR: u64 = 0;
const GICD_TYPER: u64 = 4;
const GICD_IIDR: u64 = 8;
/// GICD_IROUTER, of 64 bits for each interrupt.
const GICD_IROUTER: u64 = 0x6000;

/// Registers of a redistributor: control, and where its tables of message interrupts are.
const GICR_CTLR: u64 = 0;
const GICR_TABLES: [u64; 4] = [0x70, 0x74, 0x78, 0x7c];
/// Where a redistributor has the registers of the private interrupts, at the offsets at which the distributor has them.
const GICR_SGI: u64 = 0x1_0000;

/// Registers that have some bits for each interrupt: groups, enabled, pending, active, priorities, edge or level.
const BANKS: [Bank; 6] = [
    Bank { offset: 0x80, bits: 1, clear: None },
    Bank { offset: 0x100, bits: 1, clear: Some(0x180) },
    // Zeros that are written by the host clear, too.
    Bank { offset: 0x200, bits: 1, clear: None },
    Bank { offset: 0x300, bits: 1, clear: Some(0x380) },
    Bank { offset: 0x400, bits: 8, clear: None },
    Bank { offset: 0xc00, bits: 2, clear: None },
];

struct Bank {
    offset: u64,
    /// For each interrupt.
    bits: u32,
    /// The registers that take back what ones written to these set.
    clear: Option<u64>,
}

impl Bank {
    /// The offsets of the registers of so many interrupts from one on.
    fn offsets(&self, first: u32, count: u32) -> impl Iterator<Item = u64> {
        let word = |irqs: u32| u64::from(irqs * self.bits / 32);
        (word(first)..word(first + count)).map(|n| self.offset + n * 4)
    }
}

/// What a register of a CPU interface is called in the kernel's interface: op0, op1, CRn, CRm, op2 are 3, 0, and these.
const fn interface(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// ICC_CTLR_EL1, with the number of priority bits less one from bit 8 on.
const ICC_CTLR: u64 = interface(12, 12, 4);
/// ICC_SRE_EL1 first, by which the others are accessed; then control, groups, mask and binary points.
const ICC: [u64; 7] = [
    interface(12, 12, 5),
    ICC_CTLR,
    interface(12, 12, 6),
    interface(12, 12, 7),
    interface(4, 6, 0),
    interface(12, 8, 3),
    interface(12, 12, 3),
];
/// Active priorities of both groups, four registers each.
const ICC_ACTIVE: [u64; 2] = [interface(12, 8, 4), interface(12, 9, 0)];
/// The most registers of a CPU interface.
const MAX_INTERFACE: usize = ICC.len() + 2 * 4;

/// More processors than a machine can have.
const MAX_VCPUS: usize = 4096;

/// See the module.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct GicState {
    /// What it can do, and who made it.
    type_: u32,
    implementer: u32,
    /// As many as [`distributor`] names, and then the levels of the lines.
    distributor: Vec<u32>,
    vcpus: Vec<VcpuState>,
}

/// One vCPU's part.
#[derive(Clone, Debug, PartialEq, Eq)]
struct VcpuState {
    /// As many as [`redistributor`] names, and then the levels of the private lines.
    redistributor: Vec<u32>,
    /// As many as [`interface_registers`] names.
    interface: Vec<u64>,
}

/// The distributor's registers, in the order in which they are written.
fn distributor() -> impl Iterator<Item = u64> {
    let routers = (PRIVATE_IRQS..PRIVATE_IRQS + WIRED_LINES)
        .map(|irq| GICD_IROUTER + u64::from(irq) * 8)
        .flat_map(|low| [low, low + 4]);
    let banks = BANKS.iter().flat_map(|bank| bank.offsets(PRIVATE_IRQS, WIRED_LINES));
    std::iter::once(GICD_CTLR).chain(banks).chain(routers)
}

/// A redistributor's registers, in the order in which they are written: the tables before it is told to use them.
fn redistributor() -> impl Iterator<Item = u64> {
    let banks = BANKS.iter().flat_map(|bank| bank.offsets(0, PRIVATE_IRQS)).map(|offset| GICR_SGI + offset);
    banks.chain(GICR_TABLES).chain([GICR_CTLR])
}

/// The registers of a CPU interface that has `control`, in the order in which they are written.
fn interface_registers(control: u64) -> impl Iterator<Item = u64> {
    let priority_bits = (control >> 8 & 7) + 1;
    let active = 1 << priority_bits.saturating_sub(5).min(2);
    let active = ICC_ACTIVE.into_iter().flat_map(move |first| first..first + active);
    ICC.into_iter().chain(active)
}

/// The first of each 32 shared interrupts, for their levels.
fn lines() -> impl Iterator<Item = u64> {
    (PRIVATE_IRQS..PRIVATE_IRQS + WIRED_LINES).step_by(32).map(u64::from)
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
struct Gic<'a>(&'a DeviceFd);

impl Gic<'_> {
    fn get<T: Number>(self, group: u32, attr: u64) -> Result<T, VmError> {
        attribute(self.0, group, attr).map_err(call("KVM_GET_DEVICE_ATTR of the GIC"))
    }

    fn set<T: Number>(self, group: u32, attr: u64, value: T) -> Result<(), VmError> {
        set_attribute(self.0, group, attr, value).map_err(call("KVM_SET_DEVICE_ATTR of the GIC"))
    }
}

/// What is read and written of a vCPU, or of all of them.
fn of_vcpu(index: u32, attr: u64) -> u64 {
    u64::from(cpu_id(index)) << KVM_DEV_ARM_VGIC_V3_MPIDR_SHIFT | attr
}

/// The attribute of 32 lines' levels from one on.
fn level_info(first: u64) -> u64 {
    u64::from(VGIC_LEVEL_INFO_LINE_LEVEL) << KVM_DEV_ARM_VGIC_LINE_LEVEL_INFO_SHIFT | first
}

impl GicState {
    /// Reads the state of a GIC with so many vCPUs, none of which runs.
    pub(super) fn read(gic: &DeviceFd, vcpus: u32) -> Result<Self, VmError> {
        let gic = Gic(gic);
        let register = |offset| gic.get(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset);
        let level = |line| gic.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, level_info(line));
        Ok(Self {
            type_: register(GICD_TYPER)?,
            implementer: register(GICD_IIDR)?,
            distributor: distributor().map(register).chain(lines().map(level)).collect::<Result<_, _>>()?,
            vcpus: (0..vcpus).map(|index| VcpuState::read(gic, index)).collect::<Result<_, _>>()?,
        })
    }

    /// Writes the state to a GIC that has the same vCPUs, none of which runs.
    pub(super) fn write(&self, gic: &DeviceFd, vcpus: u32, levels: Levels) -> Result<(), VmError> {
        let gic = Gic(gic);
        let invalid = |reason| Err(VmError::InvalidState { part: "GIC", reason });
        if self.vcpus.len() != vcpus as usize {
            return invalid("of a machine with another number of vCPUs");
        }
        if gic.get::<u32>(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, GICD_TYPER)? != self.type_ {
            return invalid("not the same as the one that this machine has");
        }
        // First: what others mean depends on the revision. Another maker's is refused.
        if set_attribute(gic.0, KVM_DEV_ARM_VGIC_GRP_DIST_REGS, GICD_IIDR, self.implementer).is_err() {
            let feature = format!("a GIC with the GICD_IIDR {:#x}", self.implementer);
            return Err(VmError::MissingFeature { feature });
        }
        for bank in &BANKS {
            for offset in bank.clear.into_iter().flat_map(|offset| {
                Bank { offset, bits: bank.bits, clear: None }
                    .offsets(PRIVATE_IRQS, WIRED_LINES)
                    .collect::<Vec<_>>()
            }) {
                gic.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset, u32::MAX)?;
            }
        }
        let mut values = self.distributor.iter();
        for (offset, value) in distributor().zip(values.by_ref()) {
            gic.set(KVM_DEV_ARM_VGIC_GRP_DIST_REGS, offset, *value)?;
        }
        if levels == Levels::Saved {
            for (line, value) in lines().zip(values) {
                gic.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, level_info(line), *value)?;
            }
        }
        (0..).zip(&self.vcpus).try_for_each(|(index, vcpu)| vcpu.write(gic, index))
    }

    /// The state as the fields of a record.
    pub(super) fn encode(&self, fields: &mut Encoder) {
        fields.u32(TYPE, self.type_).u32(IMPLEMENTER, self.implementer);
        fields.bytes(DISTRIBUTOR, &words(&self.distributor));
        fields.list(VCPUS, &self.vcpus, |fields, vcpu| {
            let interface: Vec<_> = vcpu.interface.iter().flat_map(|value| value.to_le_bytes()).collect();
            fields.bytes(REDISTRIBUTOR, &words(&vcpu.redistributor)).bytes(INTERFACE, &interface);
        });
    }

    /// The state that has these fields.
    pub(super) fn decode(fields: &mut Decoder<'_>) -> Result<Self, StateError> {
        let type_ = fields.u32(TYPE)?;
        let implementer = fields.u32(IMPLEMENTER)?;
        let count = distributor().chain(lines()).count();
        let distributor = numbers(fields, DISTRIBUTOR, "distributor", count, u32::from_le_bytes)?;
        let vcpus = fields.list(VCPUS, MAX_VCPUS, |fields| {
            let count = redistributor().count() + 1;
            let redistributor = numbers(fields, REDISTRIBUTOR, "redistributor", count, u32::from_le_bytes)?;
            let bytes = fields.bytes(INTERFACE, MAX_INTERFACE * size_of::<u64>())?;
            let interface = pieces(bytes, "CPU interface", u64::from_le_bytes)?;
            let at = ICC.iter().position(|register| *register == ICC_CTLR);
            let control = at.and_then(|at| interface.get(at)).copied();
            let expected = control.map(|control| interface_registers(control).count());
            if expected != Some(interface.len()) {
                let reason = "there are not as many registers as it has priorities";
                return Err(StateError::Inconsistent { field: "CPU interface", reason });
            }
            Ok(VcpuState { redistributor, interface })
        })?;
        Ok(Self { type_, implementer, distributor, vcpus })
    }
}

impl VcpuState {
    fn read(gic: Gic<'_>, index: u32) -> Result<Self, VmError> {
        let register = |offset| gic.get(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, of_vcpu(index, offset));
        let level = gic.get(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, of_vcpu(index, level_info(0)));
        let interface = |register| gic.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of_vcpu(index, register));
        let control = interface(ICC_CTLR)?;
        Ok(Self {
            redistributor: redistributor().map(register).chain([level]).collect::<Result<_, _>>()?,
            interface: interface_registers(control).map(interface).collect::<Result<_, _>>()?,
        })
    }

    fn write(&self, gic: Gic<'_>, index: u32) -> Result<(), VmError> {
        let set = |offset, value| gic.set(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, of_vcpu(index, offset), value);
        // Message interrupts off: only then the tables can be set.
        set(GICR_CTLR, 0)?;
        for offset in BANKS.iter().filter_map(|bank| bank.clear) {
            set(GICR_SGI + offset, u32::MAX)?;
        }
        let mut values = self.redistributor.iter();
        for (offset, value) in redistributor().zip(values.by_ref()) {
            // What a new one has of the tables is not what can be written to it.
            let now: u32 = gic.get(KVM_DEV_ARM_VGIC_GRP_REDIST_REGS, of_vcpu(index, offset))?;
            if now != *value || !GICR_TABLES.contains(&offset) {
                set(offset, *value)?;
            }
        }
        for value in values {
            gic.set(KVM_DEV_ARM_VGIC_GRP_LEVEL_INFO, of_vcpu(index, level_info(0)), *value)?;
        }
        let control: u64 = gic.get(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of_vcpu(index, ICC_CTLR))?;
        if interface_registers(control).count() < self.interface.len() {
            let feature = "a GIC with as many priorities".into();
            return Err(VmError::MissingFeature { feature });
        }
        let control = self.interface.get(1).copied().unwrap_or(control);
        for (register, value) in interface_registers(control).zip(&self.interface) {
            gic.set(KVM_DEV_ARM_VGIC_GRP_CPU_SYSREGS, of_vcpu(index, register), *value)?;
        }
        Ok(())
    }
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
