//! The FADT of a hardware-reduced machine (ACPI 6.5, 5.2.9) that powers off, resets and starts its processors by PSCI.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags};

use crate::acpi::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

// ARM boot architecture flags, 5.2.9.4.
const PSCI_COMPLIANT: u16 = 1 << 0;
const PSCI_USE_HVC: u16 = 1 << 1;

pub(super) fn fadt(dsdt: u64) -> FADT {
    // Buttons are not fixed hardware, of which there is none.
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::Headless)
        .flag(Flags::HwReducedAcpi);
    fadt.arm_boot_arch = (PSCI_COMPLIANT | PSCI_USE_HVC).into();
    fadt.finalize()
}
