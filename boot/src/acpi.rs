//! ACPI tables of a hardware-reduced machine that all architectures share: RSDP, XSDT and DSDT.
//!
//! Only what exists is described, so that the guest probes for nothing else. ACPI specification 6.5.

pub(crate) mod dsdt;
mod error;
pub(crate) mod lines;
pub(crate) mod numa;
pub(crate) mod pci;

use acpi_tables::Aml;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::rsdp::Rsdp;

pub use error::AcpiError;

/// What the guest writes to the reset register of a [`NodeKind::AcpiPower`](crate::NodeKind::AcpiPower).
pub const RESET_VALUE: u8 = 1;
/// The sleep type for soft off, which the guest writes to the sleep control register of a
/// [`NodeKind::AcpiPower`](crate::NodeKind::AcpiPower): bits 2 to 4, with bit 5 set (ACPI 6.5, 4.8.3.7).
pub const S5_SLEEP_TYPE: u8 = 5;

pub(crate) const OEM_ID: [u8; 6] = *b"OSSATU";
pub(crate) const OEM_TABLE_ID: [u8; 8] = *b"OSSATURE";
pub(crate) const OEM_REVISION: u32 = 1;
pub(crate) const HEADER: usize = 36;
const LENGTH: usize = 4;
const CHECKSUM: usize = 9;

/// The FADT of a hardware-reduced machine, as far as it is the same on all architectures. Buttons and a clock's alarm are not
/// fixed hardware, of which there is none.
pub(crate) fn hardware_reduced_fadt(dsdt: u64) -> FADTBuilder {
    FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi)
}

/// Tables one after the other, with the RSDP before them all.
pub(crate) struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// No tables yet; the RSDP will lie at the guest-physical address `base`.
    pub(crate) fn new(base: u64) -> Self {
        let mut bytes = Vec::with_capacity(4096);
        // The RSDP comes first and refers to what comes last.
        bytes.resize(Rsdp::len(), 0);
        Self { base, bytes }
    }

    fn address(&self) -> u64 {
        self.base.saturating_add(self.bytes.len() as u64)
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
    }

    /// Appends a complete table; returns its address.
    pub(crate) fn append(&mut self, table: &impl Aml) -> u64 {
        self.align();
        let address = self.address();
        table.to_aml_bytes(&mut self.bytes);
        address
    }

    /// Appends a table whose part after the common header `body` writes; returns its address.
    pub(crate) fn append_with(
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

    /// The finished tables, with the RSDP for an XSDT of `tables`.
    pub(crate) fn finish(mut self, tables: &[u64]) -> Result<Vec<u8>, AcpiError> {
        let xsdt = self.append_with(b"XSDT", 1, |body| {
            body.extend(tables.iter().copied().flat_map(u64::to_le_bytes));
            Ok(())
        })?;
        let mut rsdp = Vec::with_capacity(Rsdp::len());
        Rsdp::new(OEM_ID, xsdt).to_aml_bytes(&mut rsdp);
        self.bytes.splice(..Rsdp::len(), rsdp);
        Ok(self.bytes)
    }
}
