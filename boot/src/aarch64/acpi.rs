//! The ACPI tables of an aarch64 machine: RSDP, XSDT, FADT, MADT, GTDT, PPTT and DSDT; SPCR and DBG2 with a serial port; MCFG and
//! IORT with PCI; SRAT and SLIT with NUMA nodes.

mod fadt;
mod gtdt;
mod iort;
mod madt;
mod pptt;
mod spcr;
mod srat;

use acpi_tables::Aml;
use acpi_tables::aml::{Device, Name};
use acpi_tables::mcfg::MCFG;

use super::check::check;
use super::gic;
use crate::acpi::pci::PciHost;
use crate::acpi::{AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Tables, dsdt, numa};
use crate::platform::{NodeKind, Platform};

/// How many processors have names: four characters each.
const MAX_CPUS: usize = 0x1000;

/// Builds all tables for the guest-physical address `base`, where the RSDP will be. At most `room` bytes. Processors are
/// named by their affinity (MPIDR), the interrupt `n` of a device is the shared peripheral interrupt `n`.
///
/// There is no clock: ACPI has none that Linux drives without an EFI firmware. A platform with a
/// [`NodeKind::Pl031`] is refused.
///
/// ```
/// use ossature_boot::{Node, NodeKind, NodeRange, Platform, aarch64::acpi};
/// let memory = |base, len| NodeRange::Memory { base, len };
/// let ranges = vec![memory(0xf000_0000, 0x1_0000), memory(0xf100_0000, 0x4_0000)];
/// let gic = Node::new("gic", NodeKind::GicV3, ranges, Vec::new());
/// let tables = acpi::tables(&Platform::new(vec![0, 1], Vec::new(), vec![gic]), 0x2_0000, 0x10_0000).unwrap();
/// assert!(tables.starts_with(b"RSD PTR "));
/// ```
pub fn tables(platform: &Platform, base: u64, room: u64) -> Result<Vec<u8>, AcpiError> {
    let gic = gic::only(platform).map_err(|found| AcpiError::InterruptController { found })?;
    platform.caches.as_ref().map_or(Ok(()), |caches| caches.check())?;
    platform.check_numa()?;
    let lines = check(platform)?;
    let mut tables = Tables::new(base);
    let processors = processors(platform)?;
    let elsewhere = [NodeKind::GicV2, NodeKind::GicV3, NodeKind::GicV3Its, NodeKind::PmuV3];
    let dsdt =
        tables.append_with(b"DSDT", 2, |body| dsdt::body(platform, &lines, processors, &elsewhere, body))?;
    let fadt = tables.append(&fadt::fadt(dsdt));
    let madt = tables.append_with(b"APIC", 5, |body| madt::body(platform, gic, body))?;
    let gtdt = tables.append_with(b"GTDT", 3, plain(gtdt::body))?;
    let pptt = tables.append_with(b"PPTT", pptt::REVISION, plain(|body| pptt::body(platform, body)))?;
    let mut all = vec![fadt, madt, gtdt, pptt];
    if let Some(console) = platform.nodes.iter().find(|node| node.kind == NodeKind::Pl011) {
        let console = spcr::Console::new(console)?;
        all.push(tables.append_with(b"SPCR", 2, plain(|body| console.redirection(body)))?);
        all.push(tables.append_with(b"DBG2", 0, plain(|body| console.debug_port(body)))?);
    }
    if let Some(node) = platform.nodes.iter().find(|node| node.kind == NodeKind::PciHost) {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(PciHost::new(node)?.ecam.0, 0, 0, 0);
        all.push(tables.append(&mcfg));
        // Without an ITS, PCI has no messages to map.
        if platform.nodes.iter().any(|node| node.kind == NodeKind::GicV3Its) {
            all.push(tables.append_with(b"IORT", 0, plain(iort::body))?);
        }
    }
    all.extend(numa::append(&mut tables, platform, srat::affinity)?);
    let bytes = tables.finish(&all)?;
    let len = bytes.len() as u64;
    if len > room {
        let (nodes, cpus) = (platform.nodes.len(), platform.cpus.len());
        return Err(AcpiError::TooLarge { nodes, cpus, len, room });
    }
    Ok(bytes)
}

/// The body of a table of which nothing can be refused.
fn plain(write: impl FnOnce(&mut Vec<u8>)) -> impl FnOnce(&mut Vec<u8>) -> Result<(), AcpiError> {
    |body| {
        write(body);
        Ok(())
    }
}

/// The processors as devices, which the MADT's entries belong to by their `_UID`s.
fn processors(platform: &Platform) -> Result<Vec<u8>, AcpiError> {
    if platform.cpus.len() > MAX_CPUS {
        return Err(AcpiError::TooManyCpus { limit: MAX_CPUS });
    }
    let mut out = Vec::new();
    for uid in 0..platform.cpus.len() {
        let hid = Name::new("_HID".into(), &"ACPI0007");
        let id = Name::new("_UID".into(), &uid);
        Device::new(format!("C{uid:03X}").as_str().into(), vec![&hid, &id]).to_aml_bytes(&mut out);
    }
    Ok(out)
}

#[cfg(test)]
mod tests;
