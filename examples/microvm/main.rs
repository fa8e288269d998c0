//! A virtual machine monitor in the manner of a microvm: one kernel, virtio-mmio devices, a serial port.
//! Ctrl-A X quits, Ctrl-A H helps; SIGTERM presses the power button. The exit code says how it ended:
//!
//! - 0: the guest powered off, or was told to end: by a key, by SIGTERM, SIGINT, SIGHUP or SIGQUIT.
//! - 1: the guest crashed, its kernel reported a panic, or something failed on the host.
//! - 2: wrong usage.
//! - 3: the guest asked for a reset (with `--on-reset exit`, the default). That may have been a reboot, or a panic with
//!   `panic=-1`, which looks the same from outside: before Linux loads its pvpanic driver, as when there is no root file
//!   system, a kernel that panics has no way to say so.
//!
//! Other signals that end a process end it as ever, and leave the terminal as it was.
//!
//! `args` is its command line, `arch` what only machines of one architecture have, `disk` its disks, `numa` its NUMA nodes, `devices`
//! what the guest finds, `identity` and `files` by what it knows which guest it is, `snapshot` how a machine becomes a file and goes
//! on from one, `report` what is said of the machine while it runs and when it has ended.

#[cfg(target_arch = "aarch64")]
#[path = "aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "x86_64.rs"]
mod arch;
mod args;
mod control;
mod devices;
mod disk;
mod files;
mod identity;
mod nic;
mod numa;
mod report;
mod snapshot;

use std::error::Error;
use std::io::stdin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ossature::bus::{EventLoop, SocketFile};
use ossature::legacy::RawTerminal;
use ossature::memory::{Backing, RamConfig};
use ossature::vmm::machine::{Linux, Machine};
use ossature::vmm::program::{Signals, block_io_signals, share_one_heap};
use ossature::vmm::{Kvm, install_kick_handler};

use args::Args;
use control::Control;
use devices::Devices;
use report::USER;
use snapshot::Snapshots;

/// How long a guest may take to power off once SIGTERM has pressed its power button.
const GRACE: Duration = Duration::from_secs(10);

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let started = Instant::now();
    share_one_heap();
    let args = Args::from_command_line();
    run(&args, started).unwrap_or_else(|error| report::error(&*error))
}

fn run(args: &Args, started: Instant) -> Result<ExitCode> {
    block_io_signals()?;
    let builder = Machine::builder("microvm")
        .on_reset(args.on_reset)
        .on_triple_fault(args.on_triple_fault)
        .kick_signal(install_kick_handler(libc::SIGRTMIN())?); // the process is ours: cheaper than masks
    let builder = linux(args).into_iter().fold(builder, |builder, linux| builder.payload(linux));
    let key = snapshot::key(args)?;
    let restored = snapshot::open(args, key.as_ref())?;
    let builder = key.into_iter().fold(builder, |builder, key| builder.snapshot_key(key));
    let transport = snapshot::transport(args, restored.as_ref())?;
    let numa = numa::numa(&args.numa)?;
    let (cpus, default) = numa.as_ref().map_or((1, MEMORY), |numa| (numa.cpus(), numa.memory()));
    let builder = match restored {
        Some(snapshot) => {
            let builder = args.cpus.into_iter().fold(builder, |builder, cpus| builder.cpus(cpus));
            builder.memory(memory(args, snapshot.memory_size())).restore(snapshot)
        }
        None => builder.cpus(args.cpus.unwrap_or(cpus)).memory(memory(args, default)),
    };
    let builder = numa.into_iter().fold(builder, |builder, numa| builder.numa(numa));

    // Whatever waits for a descriptor has its turns on this thread.
    let here = EventLoop::new()?;
    let (builder, devices) = Devices::add_to(builder, args, transport, &here, started)?;
    let kvm = Kvm::open()?;
    let machine = builder.build(&kvm).map_err(|errors| report::not_built(args, errors))?;
    if args.log >= log::Level::Warn {
        // Where it cannot be found out, there is nothing to warn of.
        if let Ok(Some(emulation)) = kvm.emulation() {
            USER.say_or_drop(format!("warning: {emulation}"));
        }
    }

    let here = machine.guard(&here, "microvm's own code");
    let terminal = if args.reads_keyboard() { RawTerminal::new(stdin())?.map(Arc::new) } else { None };
    let snapshots = Snapshots::new(&machine, args);
    let signals = signals(&machine, &devices, terminal.clone());
    let signals = snapshots.on_signal(args, signals).heed_on(&here)?;
    let stamps = devices.stamps.clone();
    let _events = report::events(&here, &machine, args.log)?;
    let control = args.control.as_ref().map(SocketFile::bind).transpose();
    let (listener, _file) = control.map_err(|e| format!("--control: {e}"))?.unzip();
    machine.wait_for_prefetch()?; // the guest's working set, if it is known
    machine.start()?;
    if let Some(listener) = listener {
        let Devices { button, generation, virtio, disks, links, .. } = devices;
        Control::new(machine.handle(), button, generation, virtio, disks, links, snapshots.clone())
            .serve(listener)?;
    }
    let outcome = machine.wait_on(&here)?;
    here.pass()?; // what happened last is told, too
    terminal.iter().for_each(|terminal| terminal.restore());

    if args.boot_timer {
        report::times(&machine, started, stamps.take());
    }
    let code = report::outcome(&machine, outcome);
    let _none_is_half_written = snapshots.end();
    drop(machine); // whatever signal has come, its files are removed
    signals.raise_deadly();
    Ok(code)
}

/// What is done about signals: the guest is asked or stopped, and the terminal is as it was when microvm ends or stops.
fn signals(machine: &Machine, devices: &Devices, terminal: Option<Arc<RawTerminal>>) -> Signals {
    let (button, window) = (devices.button.clone(), devices.window.clone());
    let signals = Signals::new(machine.handle());
    let signals = button
        .into_iter()
        .fold(signals, |signals, button| signals.power_button(GRACE, move || button.press()));
    let signals = signals.window_change(move || window.iter().for_each(devices::fit));
    let Some(terminal) = terminal else { return signals };
    let again = terminal.clone();
    // A terminal that has gone needs no mode.
    signals.job_control(move || terminal.restore(), move || _ = again.raw())
}

/// Bytes of guest memory by default.
const MEMORY: u64 = 256 << 20;

/// The guest's RAM, of `default` bytes unless other flags say otherwise, and what backs it on the host.
fn memory(args: &Args, default: u64) -> RamConfig {
    let shared = if args.shared_memory { Backing::Memfd } else { Backing::Anonymous };
    RamConfig::new(args.memory.unwrap_or(default)).backing(args.hugepages.clone().unwrap_or(shared))
}

/// The kernel with all that it is handed.
fn linux(args: &Args) -> Option<Linux> {
    let linux = Linux::new(args.kernel.as_ref()?).cmdline(&args.cmdline).mapped(args.map_kernel);
    let linux = args.arch.linux(linux);
    Some(args.initrd.iter().fold(linux, Linux::initrd))
}
