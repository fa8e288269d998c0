//! The ACPI tables of an x86_64 machine: RSDP, XSDT, FADT, MADT and DSDT; MCFG with PCI; SRAT and SLIT with NUMA
//! nodes.

mod fadt;
mod madt;
mod srat;

pub(super) use fadt::reset_register;

use acpi_tables::mcfg::MCFG;

use crate::acpi::lines::Lines;
use crate::acpi::pci::PciHost;
use crate::acpi::{AcpiError, OEM_ID, OEM_REVISION, OEM_TABLE_ID, Tables, dsdt, numa};
use crate::platform::{NodeKind, Platform};

/// Address of the I/O APIC; its first interrupt is global system interrupt 0.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Address of the local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// Builds all tables for the guest-physical address `base`, where the RSDP will be. At most `room` bytes.
///
/// ```
/// use ossature_boot::{Platform, x86_64::acpi};
/// let platform = Platform::new(vec![0, 1], Vec::new(), Vec::new());
/// let tables = acpi::tables(&platform, 0xe0000, 0x20000).unwrap();
/// assert!(tables.starts_with(b"RSD PTR "));
/// ```
pub fn tables(platform: &Platform, base: u64, room: u64) -> Result<Vec<u8>, AcpiError> {
    platform.check_numa()?;
    let lines = Lines::new(platform, 0)?;
    let mut tables = Tables::new(base);
    let dsdt = tables.append_with(b"DSDT", 2, |body| dsdt::body(platform, &lines, Vec::new(), &[], body))?;
    let fadt = tables.append(&fadt::fadt(platform, dsdt)?);
    let madt = tables.append_with(b"APIC", 5, |body| madt::body(platform, &lines, body))?;
    let mut all = vec![fadt, madt];
    if let Some(node) = platform.nodes.iter().find(|node| node.kind == NodeKind::PciHost) {
        let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
        mcfg.add_ecam(PciHost::new(node)?.ecam.0, 0, 0, 0);
        all.push(tables.append(&mcfg));
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

#[cfg(test)]
mod tests;
