//! The affinity of local APICs (ACPI 6.5, 5.2.16.1 and 3).

use acpi_tables::AmlSink;

use super::madt::FIRST_X2APIC_ID;
use crate::acpi::numa::{CLOCK_DOMAIN, ENABLED, Processor};

const LOCAL_APIC: u8 = 0;
const LOCAL_APIC_LEN: u8 = 16;
const X2APIC: u8 = 2;
const X2APIC_LEN: u8 = 24;

pub(super) fn affinity(processor: &Processor, out: &mut Vec<u8>) {
    match u8::try_from(processor.id) {
        Ok(id) if processor.id < FIRST_X2APIC_ID => {
            let [low, high @ ..] = processor.node.to_le_bytes();
            out.extend_from_slice(&[LOCAL_APIC, LOCAL_APIC_LEN, low, id]);
            out.dword(ENABLED);
            // No SAPIC.
            out.byte(0);
            out.extend_from_slice(&high);
            out.dword(CLOCK_DOMAIN);
        }
        _ => {
            out.extend_from_slice(&[X2APIC, X2APIC_LEN, 0, 0]);
            out.dword(processor.node);
            out.dword(processor.id);
            out.dword(ENABLED);
            out.dword(CLOCK_DOMAIN);
            out.dword(0);
        }
    }
}
