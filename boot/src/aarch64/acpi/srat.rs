//! The affinity of a GIC's processors (ACPI 6.5, 5.2.16.4).

use acpi_tables::AmlSink;

use crate::acpi::numa::{ENABLED, Processor};

const GICC: u8 = 3;
const GICC_LEN: u8 = 18;

/// There is no clock that only some processors share.
const CLOCK_DOMAIN: u32 = 0;

pub(super) fn affinity(processor: &Processor, out: &mut Vec<u8>) {
    out.extend_from_slice(&[GICC, GICC_LEN]);
    for value in [processor.node, processor.uid, ENABLED, CLOCK_DOMAIN] {
        out.dword(value);
    }
}
