//! The parts of a machine on aarch64: our devices and loader, linux-loader's command line, and a lamp in memory.

#[path = "../platform/aarch64.rs"]
mod platform;

use std::sync::Arc;

use ossature::boot::aarch64::layout::CMDLINE_SIZE;
use ossature::rust_vmm::linux_loader::{cmdline::Cmdline, cmdline_of};
use ossature::rust_vmm::vm_device::bus::{MmioAddress, MmioAddressOffset, MmioRange};
use ossature::rust_vmm::vm_device::{DeviceMmio, FromVmDevice};
use ossature::vmm::machine::{Linux, MachineBuilder};

pub use platform::{clock, power, rest, serial};

use super::{Args, Lamp, Result, open};

/// The kernel command line by default.
pub const CMDLINE: &str = "console=ttyAMA0 panic=-1";
/// What `--kernel` takes.
pub const KERNEL: &str = "Kernel: an Image or an EFI image with one in it";
/// Where the guest finds the lamp.
const LAMP: MmioAddress = MmioAddress(0xd010_0000);

impl DeviceMmio for Lamp {
    fn mmio_read(&self, _: MmioAddress, _: MmioAddressOffset, data: &mut [u8]) {
        self.read(data);
    }

    fn mmio_write(&self, _: MmioAddress, _: MmioAddressOffset, data: &[u8]) {
        self.write(data);
    }
}

pub fn lamp(lamp: Lamp) -> Result<FromVmDevice> {
    Ok(FromVmDevice::mmio("lamp", MmioRange::new(LAMP, 1)?, Arc::new(lamp)))
}

/// With the kernel, by our loader.
pub fn with_kernel(builder: MachineBuilder, args: &Args) -> Result<MachineBuilder> {
    let cmdline = Cmdline::try_from(&args.cmdline, CMDLINE_SIZE)?;
    let linux = Linux::from_file(open(&args.kernel)?).cmdline(cmdline_of(&cmdline)?);
    Ok(builder.payload(match &args.initrd {
        Some(initrd) => linux.initrd_file(open(initrd)?),
        None => linux,
    }))
}
