//! What a machine has on aarch64 beside its virtio devices. Each example takes a part of it.
#![allow(dead_code)]

use ossature::boot::aarch64::Tables;
use ossature::boot::{NodeKind, NodeRange, Platform};
use ossature::bus::Device;
use ossature::legacy::{AcpiPower, Backend, FwCfg, Pl011, Pl031, Serial};
use ossature::vmm::Registers;
use ossature::vmm::machine::Linux;

/// What Linux calls the serial port.
pub const CONSOLE: &str = "ttyAMA0";
/// There is nothing that Linux would search for.
pub const CMDLINE: &str = "";
/// ACPI tables tell the guest of no clock.
pub const ACPI_HAS_CLOCK: bool = false;

/// The console's serial port: a PL011.
pub fn serial(line: Backend) -> Serial<Pl011> {
    Serial::pl011("serial", line)
}

pub fn clock() -> Pl031 {
    Pl031::new("rtc")
}

/// The power button; the hypervisor powers off and resets.
pub fn power() -> AcpiPower {
    AcpiPower::button_only("power")
}

/// What else Linux looks for: nothing.
pub fn rest() -> Vec<Box<dyn Device>> {
    Vec::new()
}

/// A device for files, in memory.
pub fn fw_cfg() -> FwCfg {
    FwCfg::in_memory("fw-cfg")
}

/// A kernel that is told of its machine by ACPI tables instead of a device tree.
pub fn by_acpi(linux: Linux) -> Linux {
    linux.tables(Tables::Acpi)
}

/// How a few instructions begin: at EL1, with the address of the serial port in x19.
pub fn start(code: u16, machine: &Platform) -> Registers {
    let mut registers = Registers::el1(code.into());
    let serial = machine.nodes.iter().find(|node| node.kind == NodeKind::Pl011);
    if let Some(NodeRange::Memory { base, .. }) = serial.and_then(|node| node.ranges.first()) {
        registers.x[19] = *base;
    }
    registers
}
