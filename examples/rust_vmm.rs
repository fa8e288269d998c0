//! A virtual machine monitor of rust-vmm's parts on Ossature's core: KVM is opened with kvm-ioctls, guest memory mapped
//! with vm-memory. The guest's entropy comes from a device that was written for virtio-queue, a lamp is one that was
//! written for vm-device, and all devices have their turns on an event manager of rust-vmm's. On x86_64 the kernel is loaded
//! by linux-loader, and serial port and keyboard controller are vm-superio's; on aarch64, where rust-vmm has no loader that
//! makes a device tree and no PL011, these are ours, and the command line is linux-loader's.
//!
//! `cargo run --release --example rust_vmm -- --kernel vmlinux --initrd initrd` boots to a shell. The exit code says how it
//! ended:
//!
//! - 0: the guest powered off.
//! - 1: the guest crashed, or something failed on the host.
//! - 2: wrong usage.
//! - 3: the guest asked for a reset. That may have been a reboot, or a panic of its kernel with `panic=-1` (which the default
//!   command line has), which looks the same from outside.

#[cfg(target_arch = "aarch64")]
#[path = "rust_vmm/aarch64.rs"]
mod arch;
#[cfg(target_arch = "x86_64")]
#[path = "rust_vmm/x86_64.rs"]
mod arch;

use std::error::Error;
use std::fs::File;
use std::io::{Read, Write, stdin};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::Parser;
use ossature::bus::EventLoop;
use ossature::legacy::{RawTerminal, backend};
use ossature::memory::{GuestMmap, MMIO_GAP, Ram};
use ossature::rust_vmm::event_manager::{
    EventManager, EventOps, EventSet, Events, LoopSubscriber, MutEventSubscriber, SubscriberOps,
};
use ossature::rust_vmm::kvm_ioctls::{self, Kvm};
use ossature::rust_vmm::virtio_queue::{HandlerError, Queue, QueueDevice, QueueT};
use ossature::rust_vmm::vm_memory::{GuestAddress, GuestMemoryMmap};
use ossature::virtio::{DeviceInfo, DeviceType, VirtioMmio};
use ossature::vmm::error_chain;
use ossature::vmm::machine::{EventReporter, Machine, MachineEvent, Outcome, PollableEvents, Severity};
use ossature::vmm::program::{Messages, Signals, block_io_signals};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Subscriber = Arc<Mutex<dyn MutEventSubscriber>>;

/// The most that one request for entropy is given.
const MAX_ENTROPY: usize = 4096;

/// The exit code when the guest asked for a reset.
const RESET: u8 = 3;
const EXIT_CODES: &str = "\
Exit codes:
  0  the guest powered off
  1  the guest crashed, or something failed on the host
  2  wrong usage
  3  the guest asked for a reset: a reboot, or a kernel panic with panic=-1";

/// Boots a Linux kernel on a machine of rust-vmm's parts.
#[derive(Parser)]
#[command(name = "rust_vmm", version, after_help = EXIT_CODES)]
struct Args {
    #[arg(long, help = arch::KERNEL, value_name = "FILE")]
    kernel: PathBuf,
    /// Initial RAM disk
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// Kernel command line
    #[arg(long, default_value = arch::CMDLINE)]
    cmdline: String,
    /// Guest memory in MiB
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u64).range(2..=1 << 20))]
    memory: u64,
}

/// The user, who may have gone.
const USER: Messages = Messages::new("rust_vmm");
/// How long a guest may take to power off once SIGTERM has pressed its power button.
const GRACE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(Outcome::Shutdown | Outcome::Stopped) => ExitCode::SUCCESS,
        Ok(Outcome::Reset) => ExitCode::from(RESET),
        Ok(other) => fails(&format!("the machine ended: {other}")),
        Err(error) => fails(&error_chain(&*error)),
    }
}

fn fails(text: &str) -> ExitCode {
    USER.say_or_drop(text);
    ExitCode::FAILURE
}

fn run(args: &Args) -> Result<Outcome> {
    block_io_signals()?;
    let kvm = Kvm::new()?;
    let memory = guest_memory(args.memory << 20)?;
    let mut manager = EventManager::<Subscriber>::new()?;
    // The loop that our devices know has its turns on the manager.
    let here = EventLoop::new()?;
    let subscriber =
        LoopSubscriber::new(&here, |error| USER.say_or_drop(format!("the event loop: {error:?}")));
    manager.add_subscriber(Arc::new(Mutex::new(subscriber)));

    let entropy = VirtioMmio::new("rng", Box::new(entropy()?), Arc::new(here.clone()));
    let power = arch::power();
    let button = power.button();
    let builder = Machine::builder("rust-vmm")
        .ram(Ram::from_memory(&memory)?)
        .device(arch::serial(backend::stdio()?).on(&here))
        .devices(arch::rest())
        .device(arch::lamp(Lamp::default())?)
        .device(entropy)
        .device(arch::clock().on(&here))
        .device(power);
    let machine = arch::with_kernel(builder, args)?.build(&kvm_ioctls::hypervisor_of(&kvm)?)?;

    let (events, reporter) = (machine.events().pollable()?, EventReporter::new(Severity::Warning));
    let end = Arc::new(Mutex::new(End { events, reporter, outcome: None }));
    manager.add_subscriber(end.clone());
    let mut signals = Signals::new(machine.handle()).power_button(GRACE, move || button.press());
    let terminal = RawTerminal::new(stdin())?.map(Arc::new);
    if let Some(terminal) = terminal.clone() {
        let again = terminal.clone();
        // A terminal that has gone needs no mode.
        signals = signals.job_control(move || terminal.restore(), move || _ = again.raw());
    }
    let signals = signals.heed_on(&here)?;
    machine.start()?;
    let outcome = loop {
        manager.run()?;
        if let Some(outcome) = end.lock().map_err(|_| "a subscriber panicked")?.outcome.take() {
            break outcome;
        }
    };
    terminal.iter().for_each(|terminal| terminal.restore());
    drop(machine);
    signals.raise_deadly();
    Ok(outcome)
}

/// Anonymous memory, around the addresses where devices are.
fn guest_memory(size: u64) -> Result<GuestMemoryMmap> {
    let low = size.min(MMIO_GAP.start);
    let mut ranges = vec![(GuestAddress(0), usize::try_from(low)?)];
    if size > low {
        ranges.push((GuestAddress(MMIO_GAP.end), usize::try_from(size - low)?));
    }
    Ok(GuestMemoryMmap::from_ranges(&ranges)?)
}

fn open(path: &Path) -> Result<File> {
    File::open(path).map_err(|e| at(path, &e).into())
}

fn at(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// An entropy device on virtio-queue's own queue.
fn entropy() -> Result<impl ossature::virtio::LocalDevice> {
    let source = Arc::new(File::open("/dev/urandom")?);
    let info = DeviceInfo::new(DeviceType::ENTROPY, &[64]);
    Ok(QueueDevice::new(info, move |_| {
        let source = source.clone();
        Ok(move |_: u16, queue: &mut Queue, memory: &Arc<GuestMmap>| fill(&source, queue, memory))
    }))
}

fn fill(mut source: &File, queue: &mut Queue, memory: &GuestMmap) -> std::result::Result<(), HandlerError> {
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let mut buffer = chain.writer(memory)?;
        let mut bytes = vec![0; buffer.available_bytes().min(MAX_ENTROPY)];
        source.read_exact(&mut bytes)?;
        buffer.write_all(&bytes)?;
        queue.add_used(memory, head, bytes.len() as u32)?;
    }
    Ok(())
}

/// A register that reads as what was written last.
#[derive(Default)]
struct Lamp(AtomicU8);

impl Lamp {
    fn read(&self, data: &mut [u8]) {
        data.fill(self.0.load(Ordering::Relaxed));
    }

    fn write(&self, data: &[u8]) {
        data.first().inspect(|&&byte| self.0.store(byte, Ordering::Relaxed));
    }
}

/// Waits for the machine's end, and tells what fails until then.
struct End {
    events: PollableEvents,
    reporter: EventReporter,
    outcome: Option<Outcome>,
}

impl MutEventSubscriber for End {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.events, EventSet::IN)) {
            USER.say_or_drop(format!("the machine's events: {error:?}"));
        }
    }

    fn process(&mut self, _: Events, _: &mut EventOps) {
        while let Some(event) = self.events.try_next() {
            match event {
                MachineEvent::Ended(outcome) => self.outcome = Some(outcome),
                event => self.reporter.report(&event, |line| USER.say_or_drop(line)),
            }
        }
    }
}
