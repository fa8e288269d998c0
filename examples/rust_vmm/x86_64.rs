//! The parts of a machine on x86_64: linux-loader's loaders, vm-superio's devices, and a lamp at a port.

use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ossature::boot::x86_64::layout::CMDLINE_SIZE;
use ossature::bus::Device;
use ossature::legacy::{AcpiPower, Backend, Rtc, Serial, SerialPort};
use ossature::rust_vmm::linux_loader::loader::{BzImage, Elf, KernelLoader};
use ossature::rust_vmm::linux_loader::{FromKernelLoader, cmdline::Cmdline};
use ossature::rust_vmm::vm_device::bus::{PioAddress, PioAddressOffset, PioRange};
use ossature::rust_vmm::vm_device::{DevicePio, FromVmDevice};
use ossature::rust_vmm::vm_superio::{SuperioI8042, SuperioUart};
use ossature::vmm::machine::MachineBuilder;

use super::{Args, Lamp, Result, at, open};

/// The kernel command line by default.
pub const CMDLINE: &str = "console=ttyS0 8250.nr_uarts=1 panic=-1 pci=off";
/// What `--kernel` takes.
pub const KERNEL: &str = "Kernel: an ELF vmlinux or a bzImage";
/// Where the guest finds the lamp.
const LAMP: PioAddress = PioAddress(0x710);

pub fn serial(line: Backend) -> Serial<SuperioUart> {
    Serial::with_uart("com1", SerialPort::COM1, line, SuperioUart::new())
}

pub fn clock() -> Rtc {
    Rtc::new("rtc")
}

pub fn power() -> AcpiPower {
    AcpiPower::new("power")
}

/// The keyboard controller, by which Linux resets the machine.
pub fn rest() -> Vec<Box<dyn Device>> {
    vec![Box::new(SuperioI8042::new("i8042"))]
}

impl DevicePio for Lamp {
    fn pio_read(&self, _: PioAddress, _: PioAddressOffset, data: &mut [u8]) {
        self.read(data);
    }

    fn pio_write(&self, _: PioAddress, _: PioAddressOffset, data: &[u8]) {
        self.write(data);
    }
}

pub fn lamp(lamp: Lamp) -> Result<FromVmDevice> {
    Ok(FromVmDevice::pio("lamp", PioRange::new(LAMP, 1)?, Arc::new(lamp)))
}

/// With the kernel, by the loader for its kind.
pub fn with_kernel(builder: MachineBuilder, args: &Args) -> Result<MachineBuilder> {
    let mut cmdline = Cmdline::try_from(&args.cmdline, CMDLINE_SIZE)?;
    cmdline.insert("reboot", "k")?; // by the keyboard controller, of which no table tells
    let mut magic = [0; 4];
    open(&args.kernel)?.read_exact_at(&mut magic, 0).map_err(|e| at(&args.kernel, &e))?;
    Ok(if &magic == b"\x7fELF" {
        builder.payload(payload::<Elf>(args, cmdline)?)
    } else {
        builder.payload(payload::<BzImage>(args, cmdline)?)
    })
}

fn payload<L: KernelLoader>(args: &Args, cmdline: Cmdline) -> Result<FromKernelLoader<L>> {
    let kernel = FromKernelLoader::new(open(&args.kernel)?).cmdline(cmdline);
    Ok(match &args.initrd {
        Some(initrd) => kernel.initrd(open(initrd)?),
        None => kernel,
    })
}
