//! A virtual machine monitor in the manner of a microvm: one kernel, virtio-mmio devices, a serial port.
//! Ctrl-A X quits, Ctrl-A H helps; SIGTERM presses the power button. Exit code: 0 when the guest powered off or
//! reset, or was told to quit; 1 when it crashed or something failed; 2 for wrong usage.
//!
//! `args` is its command line, `devices` what the guest finds, `signals` what asks it to end, `report` what it says.

mod args;
mod devices;
mod keys;
mod report;
mod signals;

use std::error::Error;
use std::io::stdin;
use std::process::ExitCode;
use std::time::Instant;

use ossature::bus::EventLoop;
use ossature::legacy::RawTerminal;
use ossature::memory::{Backing, RamConfig};
use ossature::vmm::machine::{Linux, Machine};
use ossature::vmm::{Kvm, error_chain, install_kick_handler};

use args::Args;
use devices::Devices;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

fn main() -> ExitCode {
    let started = Instant::now();
    let args = Args::from_command_line();
    env_logger::Builder::new().filter_level(args.log).init();
    run(&args, started).unwrap_or_else(|error| report::failure(&error_chain(&*error)))
}

fn run(args: &Args, started: Instant) -> Result<ExitCode> {
    let builder = Machine::builder("microvm")
        .cpus(args.cpus)
        .memory(memory(args))
        .payload(linux(args))
        .on_reset(args.on_reset)
        .kick_signal(install_kick_handler(libc::SIGRTMIN())?); // the process is ours: cheaper than masks

    // Whatever waits for a descriptor has its turns on this thread.
    let here = EventLoop::new()?;
    let (builder, devices) = Devices::add_to(builder, args, &here, started)?;
    let machine = builder.build(&Kvm::open()?)?;

    let here = machine.guard(&here, "microvm's own code");
    let _signals = signals::heed(&here, machine.handle(), devices.button.clone())?;
    machine.start()?;
    let terminal = if args.reads_keyboard() { RawTerminal::new(stdin())? } else { None };
    let outcome = machine.wait_on(&here)?;
    drop(terminal); // it is itself again

    if args.boot_timer {
        report::times(&machine, started, devices.stamps.take());
    }
    Ok(report::outcome(&machine, outcome))
}

/// The guest's RAM, and what backs it on the host.
fn memory(args: &Args) -> RamConfig {
    let shared = if args.shared_memory { Backing::Memfd } else { Backing::Anonymous };
    RamConfig::new(args.memory).backing(args.hugepages.clone().unwrap_or(shared))
}

/// The kernel with all that it is handed.
fn linux(args: &Args) -> Linux {
    let linux = Linux::new(&args.kernel).cmdline(&args.cmdline).protocol(args.boot).mapped(args.map_kernel);
    match &args.initrd {
        Some(initrd) => linux.initrd(initrd),
        None => linux,
    }
}
