//! The FADT of a hardware-reduced machine (ACPI 6.5, 4.1 and 5.2.9).

use acpi_tables::fadt::{FADT, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};

use crate::acpi::{AcpiError, RESET_VALUE, hardware_reduced_fadt};
use crate::platform::{NodeKind, Platform};

// IA-PC boot architecture flags, 5.2.9.3.
const LEGACY_DEVICES: u16 = 1 << 0;
const HAS_8042: u16 = 1 << 1;
const NO_VGA: u16 = 1 << 2;
const NO_CMOS_RTC: u16 = 1 << 5;

/// The i8042's command port, and the command that pulses the reset line.
const I8042_COMMAND: u16 = 0x64;
const I8042_RESET: u8 = 0xfe;

pub(super) fn fadt(platform: &Platform, dsdt: u64) -> Result<FADT, AcpiError> {
    let has = |kind| platform.nodes.iter().any(|node| node.kind == kind);
    let mut arch = NO_VGA;
    if has(NodeKind::I8042) {
        arch |= HAS_8042;
    }
    if !has(NodeKind::Rtc) {
        arch |= NO_CMOS_RTC;
    }
    if [NodeKind::I8042, NodeKind::Rtc, NodeKind::Serial16550].into_iter().any(has) {
        arch |= LEGACY_DEVICES;
    }
    let mut fadt = hardware_reduced_fadt(dsdt);
    fadt.iapc_boot_arch = arch.into();
    if let Some(node) = platform.nodes.iter().find(|node| node.kind == NodeKind::AcpiPower) {
        let mut ports = node.ports();
        let (Some(control), Some(status), Some(_)) = (ports.next(), ports.next(), ports.next()) else {
            return Err(node.invalid("three ports: sleep control, sleep status and reset"));
        };
        fadt.sleep_control_reg = port(control);
        fadt.sleep_status_reg = port(status);
    }
    if let Some((at, value)) = reset_register(platform) {
        fadt.reset_reg = port(at);
        fadt.reset_value = value;
        fadt = fadt.flag(Flags::ResetRegSup);
    }
    Ok(fadt.finalize())
}

/// The port that resets the machine, and what to write there.
pub(in crate::x86_64) fn reset_register(platform: &Platform) -> Option<(u16, u8)> {
    let find = |kind| platform.nodes.iter().find(|node| node.kind == kind);
    match find(NodeKind::AcpiPower) {
        Some(node) => Some((node.ports().nth(2)?, RESET_VALUE)),
        None => find(NodeKind::I8042).map(|_| (I8042_COMMAND, I8042_RESET)),
    }
}

fn port(port: u16) -> GAS {
    GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, port.into())
}
