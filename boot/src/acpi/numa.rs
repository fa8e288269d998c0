//! The SRAT and the SLIT: NUMA nodes, and how far they are from each other (ACPI 6.5, 5.2.16 and 5.2.17). Nodes are proximity
//! domains of the same numbers.

use acpi_tables::slit::SLIT;
use acpi_tables::srat::MemoryAffinity;
use acpi_tables::{Aml, AmlSink};

use super::{AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Tables};
use crate::platform::Platform;

const SRAT_REVISION: u8 = 3;
/// What the first reserved field has to be.
const ONE: u32 = 1;

/// A processor as the SRAT names it.
pub(crate) struct Processor {
    pub(crate) node: u32,
    /// Its `_UID`.
    pub(crate) uid: u32,
    /// By which the interrupt controller knows it.
    pub(crate) id: u32,
}

/// There is no clock that only some processors share.
pub(crate) const CLOCK_DOMAIN: u32 = 0;
/// The flag of structures that are not to be ignored.
pub(crate) const ENABLED: u32 = 1;

/// Appends both tables if there are nodes, which have been checked, and returns their addresses. `processor` writes the affinity of a processor.
pub(crate) fn append(
    tables: &mut Tables,
    platform: &Platform,
    processor: impl Fn(&Processor, &mut Vec<u8>),
) -> Result<Vec<u64>, AcpiError> {
    let Some(numa) = &platform.numa else { return Ok(Vec::new()) };
    let srat = tables.append_with(b"SRAT", SRAT_REVISION, |out| {
        out.dword(ONE);
        out.qword(0);
        for ((uid, &id), node) in (0..).zip(&platform.cpus).zip(numa.of_cpus()) {
            processor(&Processor { node, uid, id }, out);
        }
        for (node, ram) in numa.parts(&platform.ram) {
            MemoryAffinity::new(node, ram.base, ram.len).enabled().to_aml_bytes(out);
        }
        Ok(())
    })?;
    let nodes = 0..numa.nodes().len() as u32;
    let mut slit = SLIT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION, nodes.end);
    for one in nodes.clone() {
        for other in one + 1..nodes.end {
            slit.set_distance(one as usize, other as usize, numa.distance(one, other));
        }
    }
    Ok(vec![srat, tables.append(&slit)])
}
