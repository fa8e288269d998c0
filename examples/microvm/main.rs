//! A virtual machine monitor in the manner of a microvm: one kernel, virtio-mmio devices, a serial port.
//! Ctrl-A X quits, Ctrl-A H helps; SIGTERM presses the power button. Exit code: 0 when the guest powered off or
//! reset, or was told to quit; 1 when it crashed or something failed; 2 for wrong usage.
mod args;

use std::error::Error;
use std::io::{stdin, stdout};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use args::Args;
use nix::sys::{signal::*, signalfd::*};
use ossature::bus::{Device, EventLoop, Handler, Hosted};
use ossature::legacy::*;
use ossature::memory::{Backing, RamConfig};
use ossature::virtio::{blk::*, console::*, net::*, *};
use ossature::vmm::{Kvm, error_chain, install_kick_handler, machine::*};

/// How long a guest may take to power off once SIGTERM has pressed its power button.
const GRACE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Virtio = (String, Box<dyn LocalDevice>);
type Keyboard = Option<Hosted<KeyFilter>>;

fn main() -> ExitCode {
    let started = Instant::now();
    let args = Args::from_command_line();
    env_logger::Builder::new().filter_level(args.log).init();
    run(&args, started).unwrap_or_else(|error| fails(&error_chain(&*error)))
}

fn fails(text: &str) -> ExitCode {
    eprintln!("microvm: {text}");
    ExitCode::FAILURE
}

fn run(args: &Args, started: Instant) -> Result<ExitCode> {
    let power = AcpiPower::new("power");
    let button = power.button();
    let linux = Linux::new(&args.kernel).cmdline(&args.cmdline).protocol(args.boot).mapped(args.map_kernel);
    let memory = if args.shared_memory { Backing::Memfd } else { Backing::Anonymous };
    let memory = RamConfig::new(args.memory).backing(args.hugepages.clone().unwrap_or(memory));
    let mut builder = Machine::builder("microvm")
        .cpus(args.cpus)
        .memory(memory)
        .payload(args.initrd.iter().fold(linux, Linux::initrd))
        .on_reset(args.on_reset)
        .kick_signal(install_kick_handler(libc::SIGRTMIN())?) // the process is ours: cheaper than masks
        .device(Rtc::new("rtc"))
        .device(I8042::new("i8042"))
        .device(Pvpanic::new("pvpanic"))
        .device(power);
    // Whatever waits for a descriptor has its turns on this thread.
    let here = EventLoop::new()?;
    let handle = builder.handle();
    builder = builder.devices(serial(args, &handle, &here)?);
    let timer = DebugPort::new("boot-timer", started);
    let stamps = timer.stamps();
    if args.boot_timer {
        builder = builder.device(timer);
    }
    let (virtio, _keyboard) = virtio(args, &handle, &here)?;
    for (id, device) in virtio {
        // Linux needs no true interrupt status, and then no interrupt costs an exit.
        let device = VirtioMmio::new(id, device, Arc::new(here.clone()));
        builder = builder.device(device.with_interrupt(MmioInterrupt::AlwaysSet));
    }
    let machine = builder.build(&Kvm::open()?)?;

    let here = machine.guard(&here, "microvm's own code");
    let _signals = heed_signals(&here, handle, button)?;
    machine.start()?;
    let keyboard = args.console || args.serial() == "stdio";
    let terminal = if keyboard { RawTerminal::new(stdin())? } else { None };
    let outcome = machine.wait_on(&here)?;
    drop(terminal); // it is itself again
    if args.boot_timer {
        let since = |instant: Instant| instant.saturating_duration_since(started).as_micros();
        for BuildPhase { name, start, end } in machine.phases() {
            eprintln!("microvm: {name} from {} to {} us", since(start), since(end));
        }
        for (index, run) in machine.first_runs().into_iter().enumerate() {
            run.inspect(|&run| eprintln!("microvm: vcpu{index} after {} us", since(run)));
        }
        for Stamp { value, at } in stamps.take() {
            eprintln!("microvm: stamp {value} after {} us", at.as_micros());
        }
    }

    Ok(match outcome {
        Outcome::Crashed(error) => fails(&format!("the guest crashed: {}", error_chain(&*error))),
        _ if machine.guest_panicked() => fails("the guest's kernel panicked"),
        Outcome::Shutdown | Outcome::Reset | Outcome::Stopped => ExitCode::SUCCESS,
        other => fails(&format!("the machine ended: {other}")),
    })
}

/// COM1, unless it goes nowhere.
fn serial(args: &Args, machine: &MachineHandle, here: &EventLoop) -> Result<Option<Box<dyn Device>>> {
    let to = args.serial();
    let line = match to.split_once('=') {
        None if to == "none" => return Ok(None),
        None => backend::stdio().map(|line| line.with_escape_keys(on_key(machine))),
        Some(("file", path)) => backend::file(path.as_ref()),
        Some((_, path)) => backend::socket(path.as_ref()),
    };
    let line = line.map_err(|e| format!("--serial {to}: {e}"))?;
    Ok(Some(Box::new(Serial::new("com1", SerialPort::COM1, line).on(here))))
}

/// The virtio devices with their ids, in the order in which the guest finds them, and what feeds the console.
fn virtio(args: &Args, machine: &MachineHandle, here: &EventLoop) -> Result<(Vec<Virtio>, Keyboard)> {
    let mut devices: Vec<Virtio> = vec![("rng".into(), Box::new(Rng::new()))];
    for (index, disk) in args.disk.iter().enumerate() {
        let id = disk.id.clone().unwrap_or_else(|| format!("disk{index}"));
        let mode = if disk.readonly { OpenMode::ReadOnly } else { OpenMode::ReadWrite };
        let file = RawFile::open(&disk.path, mode)?;
        let name: DiskId = id.parse().map_err(|e| format!("--disk id={id}: {e}"))?;
        devices.push((id, Box::new(Blk::new(file, name))));
    }
    for (index, nic) in args.net.iter().enumerate() {
        devices.push((format!("net{index}"), Box::new(Net::new(Tap::open(&nic.tap)?, nic.mac))));
    }
    if !args.console {
        return Ok((devices, None));
    }
    let (filter, input) = KeyFilter::new(stdin(), on_key(machine))?;
    let console = Console::new(Some(ConsoleInput::new(input)?), Box::new(stdout()));
    devices.push(("console".into(), Box::new(console)));
    Ok((devices, Some(filter.on(here)?)))
}

fn on_key(machine: &MachineHandle) -> impl Fn(Escape) + Send + 'static {
    let machine = machine.clone();
    move |key| match key {
        Escape::Quit => machine.stop(),
        // A raw terminal wants its own carriage returns.
        _ => eprint!("\r\nCtrl-A X quits, Ctrl-A Ctrl-A sends Ctrl-A, Ctrl-A H is this help\r\n"),
    }
}

/// SIGTERM presses the power button, and stops the machine after a grace period or when it comes again; the other
/// signals stop the machine at once. They are blocked for this thread and for all that it starts from now on.
fn heed_signals(
    here: &EventLoop,
    machine: MachineHandle,
    button: PowerButton,
) -> Result<Hosted<impl Handler>> {
    let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT]);
    signals.thread_block()?;
    let mut pressed = false;
    Ok(here.on_readable(SignalFd::with_flags(&signals, SfdFlags::all())?, move |signals| {
        while let Ok(Some(signal)) = signals.read_signal() {
            let again = std::mem::replace(&mut pressed, true);
            if signal.ssi_signo != Signal::SIGTERM as u32 || again || button.press().is_err() {
                machine.stop();
                continue;
            }
            let machine = machine.clone();
            thread::spawn(move || {
                thread::sleep(GRACE);
                machine.stop();
            });
        }
    })?)
}
