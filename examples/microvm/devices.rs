//! What the guest finds: the devices of a PC that Linux asks for, a serial port, and virtio devices.

use std::io::{self, stdin, stdout};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use ossature::bus::{Device, EventLoop, Hosted};
use ossature::legacy::{
    AcpiPower, DebugPort, Escape, I8042, KeyFilter, PowerButton, Pvpanic, Rtc, Serial, SerialPort, Stamps,
    backend, window_size,
};
use ossature::virtio::console::{Console, ConsoleInput, ConsoleOutput, ConsoleWindow};
use ossature::virtio::net::{Net, Tap};
use ossature::virtio::{LocalDevice, MmioInterrupt, Rng, VirtioMmio};
use ossature::vmm::machine::{MachineBuilder, MachineHandle};

use crate::Result;
use crate::args::{Args, SerialLine};
use crate::disk;
use crate::report::USER;

/// So many virtio devices have an interrupt line of their own. The others share what is left of the 24 that a machine has.
const OWN_LINES: usize = 12;

/// What is left to its VMM of the devices that a machine has.
pub struct Devices {
    /// The guest's power button.
    pub button: PowerButton,
    /// What the guest wrote to the boot timer's port.
    pub stamps: Stamps,
    /// The window of the console, if there is one.
    pub window: Option<ConsoleWindow>,
    /// Feeds the console for as long as it lives.
    _keyboard: Option<Hosted<KeyFilter>>,
}

impl Devices {
    /// Adds all devices to the machine, virtio devices in the order in which the guest finds them. What they do when
    /// a descriptor is ready, they do on the loop `here`.
    pub fn add_to(
        builder: MachineBuilder,
        args: &Args,
        here: &EventLoop,
        started: Instant,
    ) -> Result<(MachineBuilder, Self)> {
        let machine = builder.handle();
        let power = AcpiPower::new("power");
        let button = power.button();
        let mut builder = builder
            .device(Rtc::new("rtc").on(here))
            .device(I8042::new("i8042"))
            .device(Pvpanic::new("pvpanic"))
            .device(power)
            .devices(serial(args, &machine, here)?);
        let timer = DebugPort::new("boot-timer", started);
        let stamps = timer.stamps();
        if args.boot_timer {
            builder = builder.device(timer);
        }

        let mut lines = OWN_LINES;
        let mut virtio = |id: String, device: Box<dyn LocalDevice>| {
            let device = VirtioMmio::new(id, device, Arc::new(here.clone()));
            // Linux needs no true interrupt status, and then no interrupt costs an exit.
            let interrupt = if lines > 0 { MmioInterrupt::AlwaysSet } else { MmioInterrupt::SharedLine };
            lines = lines.saturating_sub(1);
            device.with_interrupt(interrupt)
        };
        builder = builder.device(virtio("rng".to_owned(), Box::new(Rng::new())));
        disk::each_file_is_one_disk(&args.disk)?;
        for (index, disk) in args.disk.iter().enumerate() {
            let id = disk.id.clone().unwrap_or_else(|| format!("disk{index}"));
            builder = builder.device(virtio(id.clone(), disk.device(&id)?));
        }
        for (index, nic) in args.net.iter().enumerate() {
            let device = Net::new(Tap::open(&nic.tap)?, nic.mac);
            builder = builder.device(virtio(format!("net{index}"), Box::new(device)));
        }
        let (mut keyboard, mut window) = (None, None);
        if args.console {
            let input = match KeyFilter::new(stdin(), on_key(&machine))? {
                Some((filter, input)) => {
                    keyboard = Some(filter.on(here)?);
                    ConsoleInput::new(input)?
                }
                None => ConsoleInput::new(stdin())?,
            };
            let console = Console::new(Some(input), ConsoleOutput::new(stdout())?);
            fit(window.insert(console.window()));
            builder = builder.device(virtio("console".to_owned(), Box::new(console)));
        }
        Ok((builder, Self { button, stamps, window, _keyboard: keyboard }))
    }
}

/// Gives the console the size of the window that it is shown in.
pub fn fit(window: &ConsoleWindow) {
    if let Some((columns, rows)) = window_size(stdout()).or_else(|| window_size(stdin())) {
        window.resize(columns, rows);
    }
}

/// COM1, unless it goes nowhere.
fn serial(args: &Args, machine: &MachineHandle, here: &EventLoop) -> Result<Option<Box<dyn Device>>> {
    let failed = |how: &str, path: &Path, e: io::Error| format!("--serial {how}={}: {e}", path.display());
    let line = match args.serial() {
        SerialLine::None => return Ok(None),
        SerialLine::Stdio => backend::stdio()?.with_escape_keys(on_key(machine)),
        SerialLine::File(path) => backend::file(&path).map_err(|e| failed("file", &path, e))?,
        SerialLine::Socket(path) => backend::socket(&path).map_err(|e| failed("socket", &path, e))?,
    };
    Ok(Some(Box::new(Serial::new("com1", SerialPort::COM1, line).on(here))))
}

fn on_key(machine: &MachineHandle) -> impl Fn(Escape) + Send + 'static {
    let machine = machine.clone();
    move |key| match key {
        Escape::Quit => machine.stop(),
        _ => USER.say_or_drop("Ctrl-A X quits, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A H is this help"),
    }
}
