//! What a machine has on x86_64: the devices of a PC that Linux asks for, and how the kernel is entered.

use ossature::boot::x86_64::BootProtocol;
use ossature::boot::x86_64::smbios::{Smbios, Uuid};
use ossature::bus::{Device, EventLoop};
use ossature::legacy::{AcpiPower, Backend, FwCfg, I8042, PowerButton, Pvpanic, Rtc, Serial, SerialPort};
use ossature::vmm::machine::{Linux, MachineBuilder};

use crate::Result;

/// The kernel command line by default.
pub const CMDLINE: &str = "console=ttyS0 panic=-1";
/// The machine has I/O ports.
pub const HAS_PORTS: bool = true;
/// What `--kernel` takes.
pub const KERNEL: &str = "Kernel: an ELF file or a bzImage, as it is or packed with gzip, LZ4, XZ or zstd";

/// The flags that only this architecture has.
#[derive(Debug, clap::Args)]
pub struct ArchArgs {
    /// Boot protocol; auto takes PVH where the kernel has it
    #[arg(long, default_value = "auto", value_name = "auto|pvh|linux")]
    boot: BootProtocol,
    /// The machine's UUID, which the guest finds in its SMBIOS tables
    #[arg(long)]
    uuid: Option<Uuid>,
    /// The machine's serial number there, such as ds=nocloud for cloud-init
    #[arg(long, value_name = "TEXT")]
    serial_number: Option<String>,
    /// An OEM string there, such as io.systemd.credential:NAME=VALUE; repeatable
    #[arg(long, value_name = "TEXT")]
    oem_string: Vec<String>,
}

impl ArchArgs {
    /// The kernel as it is started here.
    pub fn linux(&self, linux: Linux) -> Linux {
        let smbios = Smbios::new()
            .uuid(self.uuid.unwrap_or_default())
            .serial(self.serial_number.clone().unwrap_or_default());
        let smbios = self.oem_string.iter().cloned().fold(smbios, Smbios::oem_string);
        linux.protocol(self.boot).smbios(smbios)
    }

    /// Adds the platform's own devices.
    pub fn add_to(
        &self,
        builder: MachineBuilder,
        here: &EventLoop,
    ) -> Result<(MachineBuilder, Option<PowerButton>)> {
        let power = AcpiPower::new("power");
        let button = power.button();
        let builder = builder
            .device(Rtc::new("rtc").on(here))
            .device(I8042::new("i8042"))
            .device(Pvpanic::new("pvpanic"))
            .device(power);
        Ok((builder, Some(button)))
    }
}

/// The id of the serial port.
pub const SERIAL: &str = "com1";

/// The serial port of the console: COM1.
pub fn serial(line: Backend, here: &EventLoop) -> Box<dyn Device> {
    Box::new(Serial::new(SERIAL, SerialPort::COM1, line).on(here))
}

/// The device for files: at ports.
pub fn fw_cfg() -> FwCfg {
    FwCfg::new("fw-cfg")
}
