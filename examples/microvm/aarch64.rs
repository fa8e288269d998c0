//! What a machine has on aarch64: a PL011, described by a device tree.

use ossature::bus::{Device, EventLoop};
use ossature::legacy::{Backend, PowerButton, Serial};
use ossature::vmm::machine::{Linux, MachineBuilder};

use crate::Result;

/// The kernel command line by default.
pub const CMDLINE: &str = "console=ttyAMA0 panic=-1";
/// The machine has no I/O ports.
pub const HAS_PORTS: bool = false;
/// What `--kernel` takes.
pub const KERNEL: &str =
    "Kernel: an Image or an EFI image with one in it, as it is or packed with gzip, LZ4, XZ or zstd";

/// The flags that only this architecture has: none.
#[derive(Debug, clap::Args)]
pub struct ArchArgs {}

impl ArchArgs {
    /// The kernel as it is started here.
    pub fn linux(&self, linux: Linux) -> Linux {
        linux
    }

    /// Adds the platform's own devices: there are none, and no power button.
    pub fn add_to(
        &self,
        builder: MachineBuilder,
        _: &EventLoop,
    ) -> Result<(MachineBuilder, Option<PowerButton>)> {
        Ok((builder, None))
    }
}

/// The id of the serial port.
pub const SERIAL: &str = "serial";

/// The serial port of the console: a PL011.
pub fn serial(line: Backend, here: &EventLoop) -> Box<dyn Device> {
    Box::new(Serial::pl011(SERIAL, line).on(here))
}
