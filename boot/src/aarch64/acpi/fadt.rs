//! The FADT of a hardware-reduced machine (ACPI 6.5, 5.2.9) that powers off, resets and starts its processors by PSCI.

use acpi_tables::fadt::FADT;

use crate::acpi::hardware_reduced_fadt;

// ARM boot architecture flags, 5.2.9.4.
const PSCI_COMPLIANT: u16 = 1 << 0;
const PSCI_USE_HVC: u16 = 1 << 1;

pub(super) fn fadt(dsdt: u64) -> FADT {
    let mut fadt = hardware_reduced_fadt(dsdt);
    fadt.arm_boot_arch = (PSCI_COMPLIANT | PSCI_USE_HVC).into();
    fadt.finalize()
}
