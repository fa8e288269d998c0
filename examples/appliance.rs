//! The least that boots Linux as a product would: a kernel, a disk, a network card, a source of entropy and a serial port,
//! and nothing that the guest cannot do without. What a program does not name is not in it.
//!
//! `cargo run --release --example appliance -- KERNEL INITRD DISK TAP [WORD...]`; the words are added to the guest's
//! command line. The exit code says how it ended: 0 when the guest powered off, 1 when something failed, 2 for wrong usage,
//! 3 when the guest asked for a reset.

#[cfg(target_arch = "aarch64")]
#[path = "platform/aarch64.rs"]
mod platform;
#[cfg(target_arch = "x86_64")]
#[path = "platform/x86_64.rs"]
mod platform;

use std::env;
use std::process::ExitCode;
use std::sync::Arc;

use ossature::bus::EventLoop;
use ossature::legacy::backend;
use ossature::memory::RamConfig;
use ossature::virtio::blk::{OpenMode, RawFile};
use ossature::virtio::net::{Mac, Tap};
use ossature::virtio::{Blk, LocalDevice, MmioInterrupt, Net, Rng, VirtioMmio};
use ossature::vmm::machine::{Linux, Machine, Outcome};
use ossature::vmm::program::{Messages, block_io_signals, share_one_heap};
use ossature::vmm::{Failure, Kvm, install_kick_handler};

const USER: Messages = Messages::new("appliance");
const USAGE: &str = "usage: appliance KERNEL INITRD DISK TAP [WORD...]";

fn main() -> ExitCode {
    share_one_heap();
    let words: Vec<String> = env::args().skip(1).collect();
    let [kernel, initrd, disk, tap, more @ ..] = &words[..] else {
        USER.say_or_drop(USAGE);
        return ExitCode::from(2);
    };
    match run(kernel, initrd, disk, tap, &more.join(" ")) {
        Ok(Outcome::Shutdown) => ExitCode::SUCCESS,
        Ok(Outcome::Reset) => ExitCode::from(3),
        Ok(other) => fails(&format!("the machine ended: {other}")),
        Err(error) => fails(&error.to_string()),
    }
}

fn fails(text: &str) -> ExitCode {
    USER.say_or_drop(text);
    ExitCode::FAILURE
}

fn run(kernel: &str, initrd: &str, disk: &str, tap: &str, more: &str) -> Result<Outcome, Failure> {
    block_io_signals()?;
    // All devices have their turns on this thread.
    let here = EventLoop::new()?;
    let disk = Blk::new(RawFile::open(disk, OpenMode::ReadWrite)?, "disk".parse()?);
    let net = Net::new(Tap::open(tap)?, Mac::derived(tap));
    let virtio = |id: &str, device: Box<dyn LocalDevice>| {
        VirtioMmio::new(id, device, Arc::new(here.clone())).with_interrupt(MmioInterrupt::AlwaysSet)
    };
    // The machine adds what follows from its devices, such as `pci=off`.
    let cmdline = format!("console={} {} panic=-1 quiet {more}", platform::CONSOLE, platform::CMDLINE);
    let machine = Machine::builder("appliance")
        .kick_signal(install_kick_handler(libc::SIGRTMIN())?)
        .memory(RamConfig::new(256 << 20))
        .payload(Linux::new(kernel).initrd(initrd).cmdline(cmdline))
        .device(platform::clock().on(&here))
        .device(platform::power())
        .devices(platform::rest())
        .device(platform::serial(backend::stdio()?).on(&here))
        .device(virtio("rng", Box::new(Rng::new())))
        .device(virtio("disk", Box::new(disk)))
        .device(virtio("net", Box::new(net)))
        .build(&Kvm::open()?)?;
    machine.start()?;
    Ok(machine.wait_on(&here)?)
}
