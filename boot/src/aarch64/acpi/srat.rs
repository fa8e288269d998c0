//! The affinity of a GIC's processors (ACPI 6.5, 5.2.16.4).

use acpi_tables::AmlSink;

use crate::acpi::numa::{CLOCK_DOMAIN, ENABLED, Processor};

const GICC: u8 = 3;
const GICC_LEN: u8 = 18;

pub(super) fn affinity(processor: &Processor, out: &mut Vec<u8>) {
    out.extend_from_slice(&[GICC, GICC_LEN]);
    for value in [processor.node, processor.uid, ENABLED, CLOCK_DOMAIN] {
        out.dword(value);
    }
}
