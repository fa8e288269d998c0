//! What a machine has on aarch64: a PL011, described by a device tree or by ACPI tables.

use clap::builder::{PossibleValuesParser, TypedValueParser};
use ossature::boot::aarch64::Tables;
use ossature::bus::{Device, EventLoop};
use ossature::legacy::{AcpiPower, Backend, FwCfg, Pl031, PowerButton, Serial};
use ossature::vmm::machine::{Linux, MachineBuilder};

use crate::Result;

/// The kernel command line by default.
pub const CMDLINE: &str = "console=ttyAMA0 panic=-1";
/// The machine has no I/O ports.
pub const HAS_PORTS: bool = false;
/// What `--kernel` takes.
pub const KERNEL: &str =
    "Kernel: an Image or an EFI image with one in it, as it is or packed with gzip, LZ4, XZ or zstd";

/// The flags that only this architecture has.
#[derive(Debug, clap::Args)]
pub struct ArchArgs {
    /// By what the guest learns of its machine: a device tree, or ACPI tables, with which it has no clock
    #[arg(long, default_value = "fdt", value_name = "fdt|acpi", value_parser = PossibleValuesParser::new(["fdt", "acpi"]).map(|tables| if tables == "acpi" { Tables::Acpi } else { Tables::Fdt }), hide_possible_values = true)]
    tables: Tables,
}

impl ArchArgs {
    /// The kernel as it is started here.
    pub fn linux(&self, linux: Linux) -> Linux {
        linux.tables(self.tables)
    }

    /// Adds the platform's own devices.
    pub fn add_to(
        &self,
        builder: MachineBuilder,
        here: &EventLoop,
    ) -> Result<(MachineBuilder, Option<PowerButton>)> {
        let power = AcpiPower::button_only("power");
        let button = power.button();
        let builder = builder.device(power);
        let builder = match self.tables {
            Tables::Fdt => builder.device(Pl031::new("rtc").on(here)),
            // Nothing in ACPI's tables names a clock that Linux drives.
            Tables::Acpi => builder,
        };
        Ok((builder, Some(button)))
    }
}

/// The id of the serial port.
pub const SERIAL: &str = "serial";

/// The serial port of the console: a PL011.
pub fn serial(line: Backend, here: &EventLoop) -> Box<dyn Device> {
    Box::new(Serial::pl011(SERIAL, line).on(here))
}

/// The device for files: in memory.
pub fn fw_cfg() -> FwCfg {
    FwCfg::in_memory("fw-cfg")
}
