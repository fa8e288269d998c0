//! The registers that make up the state of a GIC, by their offsets, in the order in which they are written (GICv2: IHI 0048;
//! GICv3: IHI 0069).

use super::gic::Version;
use super::irq::{PRIVATE_IRQS, WIRED_LINES};

/// Registers of the distributor: control, what it is, who made it.
const GICD_CTLR: u64 = 0;
pub(super) const GICD_TYPER: u64 = 4;
pub(super) const GICD_IIDR: u64 = 8;
/// Whether interrupts are pending.
pub(super) const GICD_ISPENDR: u64 = 0x200;
/// Which processors of a GICv2 an interrupt goes to: of 8 bits for each.
const GICD_ITARGETSR: u64 = 0x800;
/// Edge or level: of two bits for each interrupt, the upper one of which is set for edges.
pub(super) const GICD_ICFGR: u64 = 0xc00;
/// Which processors have sent an interrupt of software to this one: 8 bits for each. Ones written to the first four registers
/// take back what ones written to the last four set.
const GICD_CPENDSGIR: u64 = 0xf10;
const GICD_SPENDSGIR: u64 = 0xf20;
/// GICD_IROUTER of a GICv3, of 64 bits for each interrupt.
const GICD_IROUTER: u64 = 0x6000;

/// Registers of a redistributor: control, and where its tables of message interrupts are.
pub(super) const GICR_CTLR: u64 = 0;
pub(super) const GICR_TABLES: [u64; 4] = [0x70, 0x74, 0x78, 0x7c];
/// Where a redistributor has the registers of the private interrupts, at the offsets at which the distributor has them.
const GICR_SGI: u64 = 0x1_0000;

/// Registers that have some bits for each interrupt: groups, enabled, pending, active, priorities, edge or level.
const BANKS: [Bank; 6] = [
    Bank { offset: 0x80, bits: 1, clear: None },
    Bank { offset: 0x100, bits: 1, clear: Some(0x180) },
    // Of a GICv3, zeros that the host writes clear, and these do nothing.
    Bank { offset: GICD_ISPENDR, bits: 1, clear: Some(0x280) },
    Bank { offset: 0x300, bits: 1, clear: Some(0x380) },
    Bank { offset: 0x400, bits: 8, clear: None },
    Bank { offset: GICD_ICFGR, bits: 2, clear: None },
];

struct Bank {
    offset: u64,
    /// For each interrupt.
    bits: u32,
    /// The registers that take back what ones written to these set.
    clear: Option<u64>,
}

/// The offsets of registers of so many bits for each interrupt, of some interrupts.
fn words(offset: u64, bits: u32, irqs: Irqs) -> impl Iterator<Item = u64> {
    let word = |irq: u32| u64::from(irq * bits / 32);
    (word(irqs.0)..word(irqs.0 + irqs.1)).map(move |n| offset + n * 4)
}

/// Interrupts: the first, and how many.
#[derive(Clone, Copy)]
struct Irqs(u32, u32);

const SHARED: Irqs = Irqs(PRIVATE_IRQS, WIRED_LINES);
const PRIVATE: Irqs = Irqs(0, PRIVATE_IRQS);
/// Those of software.
const SOFTWARE: Irqs = Irqs(0, 16);

fn banks(irqs: Irqs) -> impl Iterator<Item = u64> {
    BANKS.iter().flat_map(move |bank| words(bank.offset, bank.bits, irqs))
}

fn clears(version: Version, irqs: Irqs) -> impl Iterator<Item = u64> {
    BANKS
        .iter()
        .filter(move |bank| version == Version::V2 || bank.offset != GICD_ISPENDR)
        .filter_map(|bank| Some((bank.clear?, bank.bits)))
        .flat_map(move |(at, bits)| words(at, bits, irqs))
}

/// What a register of a CPU interface is called in the kernel's interface: op0, op1, CRn, CRm, op2 are 3, 0, and these.
const fn interface(crn: u64, crm: u64, op2: u64) -> u64 {
    3 << 14 | crn << 7 | crm << 3 | op2
}

/// ICC_CTLR_EL1, with the number of priority bits less one from bit 8 on.
pub(super) const ICC_CTLR: u64 = interface(12, 12, 4);
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
/// Where [`ICC_CTLR`] is among them.
pub(super) const ICC_CTLR_INDEX: usize = 1;
/// Active priorities of both groups, four registers each.
const ICC_ACTIVE: [u64; 2] = [interface(12, 8, 4), interface(12, 9, 0)];
/// Of a GICv2: control, mask, binary points, active priorities.
const GICC: [u64; 8] = [0x00, 0x04, 0x08, 0x1c, 0xd0, 0xd4, 0xd8, 0xdc];
/// The most registers of a CPU interface.
pub(super) const MAX_INTERFACE: usize = ICC.len() + 2 * 4;

impl Version {
    /// The distributor's, of what all processors share.
    pub(super) fn distributor(self) -> Vec<u64> {
        let control = [GICD_CTLR].into_iter();
        match self {
            // The targets before what is pending, which is the targets' then.
            Self::V2 => control.chain(words(GICD_ITARGETSR, 8, SHARED)).chain(banks(SHARED)).collect(),
            Self::V3 => control.chain(banks(SHARED)).chain(words(GICD_IROUTER, 64, SHARED)).collect(),
        }
    }

    /// Those to which ones are written before.
    pub(super) fn distributor_clears(self) -> Vec<u64> {
        clears(self, SHARED).collect()
    }

    /// Those of each processor's own interrupts: the distributor's of a GICv2, the redistributor's of a GICv3.
    pub(super) fn private(self) -> Vec<u64> {
        match self {
            Self::V2 => banks(PRIVATE).chain(words(GICD_SPENDSGIR, 8, SOFTWARE)).collect(),
            // The tables before it is told to use them.
            Self::V3 => {
                banks(PRIVATE).map(|offset| GICR_SGI + offset).chain(GICR_TABLES).chain([GICR_CTLR]).collect()
            }
        }
    }

    /// Those to which ones are written before.
    pub(super) fn private_clears(self) -> Vec<u64> {
        match self {
            Self::V2 => clears(self, PRIVATE).chain(words(GICD_CPENDSGIR, 8, SOFTWARE)).collect(),
            Self::V3 => clears(self, PRIVATE).map(|offset| GICR_SGI + offset).collect(),
        }
    }

    /// Those of a processor's interface, which has so many of priorities on a GICv3 as its `control` says.
    pub(super) fn interface(self, control: u64) -> Vec<u64> {
        if self == Self::V2 {
            return GICC.into();
        }
        let priority_bits = (control >> 8 & 7) + 1;
        let active = 1 << priority_bits.saturating_sub(5).min(2);
        let active = ICC_ACTIVE.into_iter().flat_map(move |first| first..first + active);
        ICC.into_iter().chain(active).collect()
    }

    /// The first of each 32 shared interrupts, for their levels, which only a GICv3 has beside what is pending.
    pub(super) fn lines(self) -> Vec<u64> {
        let lines = (PRIVATE_IRQS..PRIVATE_IRQS + WIRED_LINES).step_by(32).map(u64::from);
        if self == Self::V2 { Vec::new() } else { lines.collect() }
    }
}

#[cfg(test)]
mod tests;
