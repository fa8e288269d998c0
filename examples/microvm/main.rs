//! A virtual machine monitor in the manner of a microvm: one kernel, virtio-mmio devices, a serial port.
//!
//! ```text
//! cargo run --release --example microvm -- --kernel vmlinux --initrd initrd.gz --cpus 2 --memory 512M \
//!     --disk path=root.img --net tap=tap0
//! ```
//!
//! Ctrl-A X quits, Ctrl-A H helps; SIGTERM presses the power button. Exit code: 0 when the guest powered off or
//! reset, or was told to quit; 1 when it crashed or something failed; 2 for wrong usage.

mod args;
mod host;

use std::error::Error;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use args::{Args, Boot, HugePages, SerialTo};
use ossature::boot::BootProtocol;
use ossature::bus::Device;
use ossature::core::Kvm;
use ossature::core::machine::{Linux, Machine, Outcome};
use ossature::legacy::{AcpiPower, DebugPort, I8042, Pvpanic, Rtc, Serial, SerialPort, backend};
use ossature::memory::{Backing, RamConfig};
use ossature::virtio::blk::{DiskId, OpenMode, RawFile};
use ossature::virtio::console::ConsoleInput;
use ossature::virtio::net::{Mac, Tap};
use ossature::virtio::{Blk, Console, Net, Rng, SharedLoop, VirtioDevice, VirtioMmio};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let started = Instant::now();
    let args = Args::from_command_line();
    host::log_to_stderr(args.log);
    match run(&args, started) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("microvm: {}", host::with_sources(&*error));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args, started: Instant) -> Result<ExitCode> {
    let signals = host::signals()?;
    let kvm = Kvm::open()?;
    let power = AcpiPower::new("power");
    let button = power.button();
    let io = Arc::new(SharedLoop::new("io")?);
    let keys = host::Keys::default();

    let mut linux = Linux::new(&args.kernel).cmdline(&args.cmdline).protocol(match args.boot {
        Boot::Auto => BootProtocol::Auto,
        Boot::Pvh => BootProtocol::Pvh,
        Boot::Linux => BootProtocol::Linux64,
    });
    if let Some(initrd) = &args.initrd {
        linux = linux.initrd(initrd);
    }
    let mut devices: Vec<Box<dyn Device>> = vec![
        Box::new(Rtc::new("rtc")),
        Box::new(I8042::new("i8042")),
        Box::new(Pvpanic::new("pvpanic")),
        Box::new(power),
    ];
    devices.extend(serial(args, &keys)?);
    if args.boot_timer {
        devices.push(Box::new(boot_timer(started)));
    }
    for (id, device) in virtio(args, &keys)? {
        devices.push(Box::new(VirtioMmio::new(id, device, io.clone())));
    }
    let mut machine = Machine::builder("microvm")
        .cpus(args.cpus)
        .memory(RamConfig { backing: backing(args), ..RamConfig::new(args.memory) })
        .payload(linux)
        .devices(devices)
        .build(&kvm)?;

    host::obey(signals, machine.handle(), button);
    keys.connect(machine.handle());
    let terminal = host::raw_terminal(args.uses_stdin())?;
    machine.start()?;
    let outcome = machine.wait()?;
    drop(terminal);

    Ok(match outcome {
        Outcome::Crashed(error) => {
            eprintln!("microvm: the guest crashed: {}", host::with_sources(&*error));
            ExitCode::FAILURE
        }
        Outcome::Shutdown | Outcome::Reset | Outcome::Stopped if machine.guest_panicked() => {
            eprintln!("microvm: the guest's kernel panicked");
            ExitCode::FAILURE
        }
        Outcome::Shutdown | Outcome::Reset | Outcome::Stopped => ExitCode::SUCCESS,
        other => {
            eprintln!("microvm: the machine ended: {other:?}");
            ExitCode::FAILURE
        }
    })
}

fn backing(args: &Args) -> Backing {
    match args.hugepages {
        Some(HugePages::Two) => Backing::Huge2M,
        Some(HugePages::One) => Backing::Huge1G,
        None if args.shared_memory => Backing::Memfd,
        None => Backing::Anonymous,
    }
}

fn boot_timer(started: Instant) -> DebugPort {
    DebugPort::with_callback("boot-timer", started, DebugPort::DEFAULT_PORT, |stamp| {
        eprintln!("microvm: stamp {} after {} us", stamp.value, stamp.at.as_micros());
    })
}

/// COM1, unless it goes nowhere.
fn serial(args: &Args, keys: &host::Keys) -> Result<Option<Box<dyn Device>>> {
    let line = match args.serial() {
        SerialTo::None => return Ok(None),
        SerialTo::Stdio => {
            let keys = keys.clone();
            backend::stdio()?.with_escape_keys(move |key| keys.pressed(key))
        }
        SerialTo::File(path) => {
            backend::file(&path).map_err(|e| format!("--serial file={}: {e}", path.display()))?
        }
        SerialTo::Socket(path) => {
            backend::socket(&path).map_err(|e| format!("--serial socket={}: {e}", path.display()))?
        }
    };
    Ok(Some(Box::new(Serial::new("com1", SerialPort::COM1, line)?)))
}

/// The virtio devices with their ids, in the order in which the guest finds them.
fn virtio(args: &Args, keys: &host::Keys) -> Result<Vec<(String, Box<dyn VirtioDevice>)>> {
    let mut devices: Vec<(String, Box<dyn VirtioDevice>)> = vec![("rng".into(), Box::new(Rng::new()))];
    for (index, disk) in args.disk.iter().enumerate() {
        let id = disk.id.clone().unwrap_or_else(|| format!("disk{index}"));
        let mode = if disk.readonly { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let file = RawFile::open(&disk.path, mode)?;
        let name: DiskId = id.parse().map_err(|e| format!("--disk id={id}: {e}"))?;
        devices.push((id, Box::new(Blk::new(file, name))));
    }
    for (index, nic) in args.net.iter().enumerate() {
        let tap = Tap::open(&nic.tap)?;
        let mac = nic.mac.unwrap_or_else(|| Mac::derived(&nic.tap));
        devices.push((format!("net{index}"), Box::new(Net::new(tap, mac))));
    }
    if args.console {
        let input = ConsoleInput::new(host::keyboard(keys.clone())?)?;
        devices.push(("console".into(), Box::new(Console::new(Some(input), Box::new(std::io::stdout())))));
    }
    Ok(devices)
}
