//! ACPI tables for a hardware-reduced x86_64 machine: RSDP, XSDT, FADT, MADT and DSDT.
//!
//! Only what exists is described, so that the guest probes for nothing else. ACPI specification 6.5.

mod dsdt;
mod fadt;
mod madt;

pub(crate) use fadt::reset_register;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;

use crate::platform::{Node, NodeKind, NodeRange, Platform};

/// What the guest writes to the reset register of a [`NodeKind::AcpiPower`].
pub const RESET_VALUE: u8 = 1;
/// The sleep type for soft off, which the guest writes to the sleep control register of a
/// [`NodeKind::AcpiPower`]: bits 2 to 4, with bit 5 set (ACPI 6.5, 4.8.3.7).
pub const S5_SLEEP_TYPE: u8 = 5;
/// Address of the I/O APIC; its first interrupt is global system interrupt 0.
pub const IO_APIC: u32 = 0xfec0_0000;
/// Address of the local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

const OEM_ID: [u8; 6] = *b"OSSATU";
const OEM_TABLE_ID: [u8; 8] = *b"OSSATURE";
const OEM_REVISION: u32 = 1;
const HEADER: usize = 36;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;

/// Why a platform cannot be described.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum AcpiError {
    /// The tables do not fit where they have to be.
    #[error(
        "the ACPI tables for {nodes} devices and {cpus} processors take {len} bytes; there is room for {room}"
    )]
    TooLarge {
        /// Number of nodes.
        nodes: usize,
        /// Number of processors.
        cpus: usize,
        /// Size of the tables in bytes.
        len: u64,
        /// Bytes that they may take.
        room: u64,
    },
    /// More devices of a kind than can be named.
    #[error("more than {limit} devices of kind {kind:?}")]
    TooManyNodes {
        /// The kind.
        kind: NodeKind,
        /// How many are possible.
        limit: usize,
    },
    /// A machine without processors.
    #[error("the platform has no processor")]
    NoCpu,
    /// Two processors with one APIC id.
    #[error("APIC id {id} is given to two processors")]
    DuplicateApicId {
        /// The id.
        id: u32,
    },
    /// A node whose ranges or interrupts are not what its kind has.
    #[error("device `{id}` ({kind:?}) needs {needs}")]
    InvalidNode {
        /// The node's name.
        id: String,
        /// Its kind.
        kind: NodeKind,
        /// What would be right.
        needs: &'static str,
    },
}

/// Builds all tables for the guest-physical address `base`, where the RSDP will be. At most `room` bytes.
///
/// ```
/// use ossature_boot::{Platform, acpi};
/// let platform = Platform { cpus: vec![0, 1], ..Default::default() };
/// let tables = acpi::tables(&platform, 0xe0000, 0x20000).unwrap();
/// assert!(tables.starts_with(b"RSD PTR "));
/// ```
pub fn tables(platform: &Platform, base: u64, room: u64) -> Result<Vec<u8>, AcpiError> {
    let mut tables = Tables { base, bytes: Vec::with_capacity(4096) };
    // The RSDP comes first and refers to what comes last.
    tables.bytes.resize(Rsdp::len(), 0);
    let dsdt = tables.append(b"DSDT", 2, |body| dsdt::body(platform, body))?;
    tables.align();
    let fadt = tables.address();
    fadt::fadt(platform, dsdt)?.to_aml_bytes(&mut tables.bytes);
    let madt = tables.append(b"APIC", 5, |body| madt::body(platform, body))?;
    let xsdt = tables.append(b"XSDT", 1, |body| {
        body.extend([fadt, madt].into_iter().flat_map(u64::to_le_bytes));
        Ok(())
    })?;
    let mut bytes = tables.bytes;
    let mut rsdp = Vec::with_capacity(Rsdp::len());
    Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
    bytes.splice(..Rsdp::len(), rsdp);
    let len = bytes.len() as u64;
    if len > room {
        let (nodes, cpus) = (platform.nodes.len(), platform.cpus.len());
        return Err(AcpiError::TooLarge { nodes, cpus, len, room });
    }
    Ok(bytes)
}

/// Tables one behind the other.
struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    fn address(&self) -> u64 {
        self.base.saturating_add(self.bytes.len() as u64)
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Appends a table whose part behind the common header `body` writes; returns its address.
    fn append(
        &mut self,
        signature: &[u8; 4],
        revision: u8,
        body: impl FnOnce(&mut Vec<u8>) -> Result<(), AcpiError>,
    ) -> Result<u64, AcpiError> {
        self.align();
        let (start, address) = (self.bytes.len(), self.address());
        let out = &mut self.bytes;
        out.extend_from_slice(signature);
        out.extend_from_slice(&[0, 0, 0, 0, revision, 0]);
        out.extend_from_slice(&OEM_ID);
        out.extend_from_slice(&OEM_TABLE_ID);
        out.extend_from_slice(&OEM_REVISION.to_le_bytes());
        out.extend_from_slice(&acpi_tables::CREATOR_ID);
        out.extend_from_slice(&acpi_tables::CREATOR_REVISION);
        debug_assert_eq!(out.len() - start, HEADER);
        body(out)?;
        let table = out.get_mut(start..).unwrap_or_default();
        let len = table.len() as u32;
        if let Some(field) = table.get_mut(LENGTH..LENGTH + 4) {
            field.copy_from_slice(&len.to_le_bytes());
        }
        let sum = table.iter().fold(0u8, |sum, &byte| sum.wrapping_add(byte));
        if let Some(field) = table.get_mut(CHECKSUM) {
            *field = sum.wrapping_neg();
        }
        Ok(address)
    }
}

impl Node {
    fn invalid(&self, needs: &'static str) -> AcpiError {
        AcpiError::InvalidNode { id: self.id.clone(), kind: self.kind, needs }
    }

    /// All its ports, one by one.
    fn ports(&self) -> impl Iterator<Item = u16> + '_ {
        let io = |range: &NodeRange| match *range {
            NodeRange::Io { base, len } => Some((base, len)),
            NodeRange::Memory { .. } => None,
        };
        self.ranges
            .iter()
            .filter_map(io)
            .flat_map(|(base, len)| (0..len).filter_map(move |i| base.checked_add(i)))
    }
}

#[cfg(test)]
mod tests;
