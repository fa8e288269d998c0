//! The MADT: the GIC's interfaces of processors, its distributor, and those of version 3 also its redistributors and its ITS
//! (ACPI 6.5, 5.2.12.14 to 18).

use std::collections::BTreeSet;

use acpi_tables::madt::{EnabledStatus, GicIts, GicVersion, Gicc, Gicd, Gicr, Trigger};
use acpi_tables::{Aml, AmlSink};

use crate::aarch64::{PMU, PRIVATE, gic};
use crate::acpi::AcpiError;
use crate::platform::{Node, NodeKind, NodeRange, Platform};

/// Bytes of a processor's interface in this revision: without the interrupt of trace buffers.
const GICC_LEN: usize = 80;
const LENGTH: usize = 1;

/// The body of the table of a machine with this interrupt controller.
pub(super) fn body(platform: &Platform, gic: &Node, out: &mut Vec<u8>) -> Result<(), AcpiError> {
    let is_v2 = gic.kind == NodeKind::GicV2;
    let wrong = || {
        gic.invalid(if is_v2 {
            "two memory ranges, the distributor and the interface of processors, below 4 GiB in size"
        } else {
            "two memory ranges, the distributor and the redistributors, below 4 GiB in size"
        })
    };
    let &[NodeRange::Memory { base: distributor, .. }, NodeRange::Memory { base: processors, len }] =
        &*gic.ranges
    else {
        return Err(wrong());
    };
    let len = u32::try_from(len).map_err(|_| wrong())?;
    if platform.cpus.is_empty() {
        return Err(AcpiError::NoCpu);
    }
    if is_v2 && platform.cpus.len() > gic::GIC_V2_CPUS {
        return Err(AcpiError::TooManyCpus { limit: gic::GIC_V2_CPUS });
    }
    // No local interrupt controllers that all share, no flags.
    out.qword(0);
    let version = if is_v2 { GicVersion::GICv2 } else { GicVersion::GICv3 };
    Gicd::new(0, distributor, version).to_aml_bytes(out);
    let monitors = platform.nodes.iter().any(|node| node.kind == NodeKind::PmuV3);
    let mut known = BTreeSet::new();
    for (uid, &id) in (0..).zip(&platform.cpus) {
        if !known.insert(id) {
            return Err(AcpiError::DuplicateCpu { id });
        }
        let interface = Gicc::new(EnabledStatus::Enabled)
            .cpu_interface_number(uid)
            .acpi_processor_uid(uid)
            .base_address(if is_v2 { processors } else { 0 })
            .mpidr(id.into())
            .performance_interrupt(if monitors { PRIVATE + PMU } else { 0 }, Trigger::Level);
        let mut bytes = Vec::new();
        interface.to_aml_bytes(&mut bytes);
        bytes.truncate(GICC_LEN);
        if let Some(field) = bytes.get_mut(LENGTH) {
            *field = GICC_LEN as u8;
        }
        out.vec(&bytes);
    }
    if !is_v2 {
        Gicr::new(processors, len).to_aml_bytes(out);
    }
    let mut translators = platform.nodes.iter().filter(|node| node.kind == NodeKind::GicV3Its);
    if let Some(its) = translators.next() {
        let &[NodeRange::Memory { base, .. }] = &*its.ranges else {
            return Err(its.invalid("one memory range"));
        };
        if is_v2 {
            return Err(its.invalid("a GICv3"));
        }
        GicIts::new(0, base).to_aml_bytes(out);
    }
    if translators.next().is_some() {
        return Err(AcpiError::TooManyNodes { kind: NodeKind::GicV3Its, limit: 1 });
    }
    Ok(())
}
