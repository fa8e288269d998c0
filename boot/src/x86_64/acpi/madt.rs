//! The MADT: local APICs, the I/O APIC and what is special about its lines (ACPI 6.5, 5.2.12).

use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::{Aml, AmlSink};

use super::{IO_APIC, LOCAL_APIC};
use crate::acpi::AcpiError;
use crate::acpi::lines::Lines;
use crate::platform::Platform;

/// Ids from here on do not fit a local APIC structure: 255 means all processors.
pub(super) const FIRST_X2APIC_ID: u32 = 255;
const X2APIC: u8 = 9;
const X2APIC_LEN: u8 = 16;
const ENABLED: u32 = 1;
const SOURCE_OVERRIDE: u8 = 2;
const SOURCE_OVERRIDE_LEN: u8 = 10;
/// The first interrupts are those of the ISA bus, on which lines are edge-triggered unless an override says otherwise.
const ISA_LINES: u32 = 16;
const ISA_BUS: u8 = 0;
/// MPS INTI flags (table 5.26): active high, level-triggered.
const LEVEL_HIGH: u16 = 0b01 | 0b11 << 2;

pub(super) fn body(platform: &Platform, lines: &Lines, out: &mut Vec<u8>) -> Result<(), AcpiError> {
    let mut ids = platform.cpus.clone();
    ids.sort_unstable();
    if ids.is_empty() {
        return Err(AcpiError::NoCpu);
    }
    if let Some(id) = ids.iter().zip(ids.iter().skip(1)).find_map(|(a, b)| (a == b).then_some(*a)) {
        return Err(AcpiError::DuplicateCpu { id });
    }
    out.dword(LOCAL_APIC);
    // Flags: no pair of 8259 in addition to the I/O APIC.
    out.dword(0);
    for (uid, &id) in platform.cpus.iter().enumerate() {
        match (u8::try_from(uid), u8::try_from(id)) {
            (Ok(uid), Ok(small)) if id < FIRST_X2APIC_ID => {
                ProcessorLocalApic::new(uid, small, EnabledStatus::Enabled).to_aml_bytes(out);
            }
            _ => {
                out.extend_from_slice(&[X2APIC, X2APIC_LEN, 0, 0]);
                out.dword(id);
                out.dword(ENABLED);
                out.dword(uid as u32);
            }
        }
    }
    IoApic::new(0, IO_APIC, 0).to_aml_bytes(out);
    for line in lines.level_triggered().take_while(|&line| line < ISA_LINES) {
        out.extend_from_slice(&[SOURCE_OVERRIDE, SOURCE_OVERRIDE_LEN, ISA_BUS, line as u8]);
        out.dword(line);
        out.word(LEVEL_HIGH);
    }
    Ok(())
}
