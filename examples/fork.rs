//! One guest that becomes many: booted once, forked, and each child talked to.
//!
//! `cargo run --release --example fork -- --kernel K --initrd I --memory 256M --children 16`
//!
//! The guest has a network card, a disk, vsock, a console, a generation ID and a host name in a file of fw_cfg. Its initial
//! RAM disk has a program that connects to port 1000 of the host when it has started, and again when it finds that it has
//! another host name: it sends a line `mac=.. cid=.. random=.. hostname=..` and waits for one. When all have called, the host
//! connects to port 1000 of each, and is sent a line `hostname=.. disk=..`. `tests/guests/clone.rs` is such a program. Guests learn of
//! their machine by ACPI, which tells kernels before Linux 6.10 of a generation ID.

#[cfg(target_arch = "aarch64")]
#[path = "platform/aarch64.rs"]
mod platform;
#[cfg(target_arch = "x86_64")]
#[path = "platform/x86_64.rs"]
mod platform;

use std::error::Error;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use clap::Parser;
use ossature::block::{ImageFormat, OpenMode, Qcow2, Qcow2Options};
use ossature::bus::Device;
use ossature::legacy::{GenerationId, VmGenId, backend};
use ossature::memory::RamConfig;
use ossature::pci::PciBus;
use ossature::virtio::console::{Console, ConsoleOutput};
use ossature::virtio::net::{Mac, Net, StreamSocket};
use ossature::virtio::vsock::{Cid, HostSocket, Vsock};
use ossature::virtio::{Blk, LocalDevice, MmioInterrupt, Rng, SharedLoop, VirtioMmio, VirtioPci};
use ossature::vmm::machine::{ForkPlan, GuestClock, Linux, Machine};
use ossature::vmm::program::{parse_size, raise_descriptor_limit};
use ossature::vmm::{Failure, Kvm};

/// Where guests call, and are called.
const PORT: u32 = 1000;
/// How long a guest may take for its boot, and for its call.
const LIMIT: Duration = Duration::from_secs(300);
/// Bytes of the disk that all children share.
const DISK: u64 = 16 << 20;

/// Boots a guest, forks it, and talks to each child.
#[derive(Parser)]
struct Args {
    /// A Linux kernel.
    #[arg(long)]
    kernel: PathBuf,
    /// Its initial RAM disk, with a program that calls.
    #[arg(long)]
    initrd: PathBuf,
    /// Memory of each machine.
    #[arg(long, default_value = "256M", value_parser = parse_size)]
    memory: u64,
    /// How many children.
    #[arg(long, default_value_t = 16)]
    children: u64,
    /// Puts the virtio devices behind a PCI bus instead of MMIO.
    #[arg(long)]
    pci: bool,
    /// Shows the parent's console.
    #[arg(long)]
    console: bool,
    /// Has the guests' clocks catch up instead of going on where they were.
    #[arg(long)]
    catch_up: bool,
}

/// What is each guest's own, and what its VMM keeps of it.
struct Own {
    calls: UnixListener,
    generation: GenerationId,
    /// The other end of its network cable.
    network: UnixStream,
}

/// Makes what guests have: the parent, which is the first, and child N, which is the one after N others.
struct Maker {
    folder: PathBuf,
    io: Arc<SharedLoop>,
    pci: bool,
    own: Mutex<Vec<Own>>,
}

type Made<T> = Result<T, Box<dyn Error + Send + Sync>>;

impl Maker {
    /// The devices of guest `number`, on the disk `disk`.
    fn devices(&self, number: u64, disk: Qcow2, console: bool) -> Made<Vec<Box<dyn Device>>> {
        let (ours, theirs) = UnixStream::pair()?;
        let (high, low) = ((number >> 8) as u8, number as u8);
        let net = Net::new(StreamSocket::from_fd(theirs)?, Mac::new([0x52, 0x54, 0, 0, high, low])?);
        let socket = self.folder.join(format!("vsock-{number}"));
        let calls = UnixListener::bind(self.folder.join(format!("vsock-{number}_{PORT}")))?;
        let cid = Cid::try_from(number + 3)?;
        let vsock = Vsock::new(cid)?.with_socket(HostSocket::bind(socket)?)?;
        let generation = GenerationId::random()?;
        let name = format!("guest-{number:05}");
        let output = if console { backend::writer(io::stderr()) } else { backend::none() };
        let bus = PciBus::new();
        let virtio = |id: &str, device: Box<dyn LocalDevice>| -> Box<dyn Device> {
            if self.pci {
                return Box::new(VirtioPci::new(id, device, self.io.clone(), &bus));
            }
            let device = VirtioMmio::new(id, device, self.io.clone());
            Box::new(device.with_interrupt(MmioInterrupt::AlwaysSet))
        };
        let mut devices: Vec<Box<dyn Device>> = vec![
            Box::new(platform::power()),
            Box::new(platform::serial(output)),
            Box::new(VmGenId::new("generation", generation)),
            Box::new(platform::fw_cfg().file("opt/org.ossature/hostname", name)?),
            virtio("rng", Box::new(Rng::new())),
            virtio("disk", Box::new(Blk::new(disk, "disk".parse()?))),
            virtio("net", Box::new(net)),
            virtio("vsock", Box::new(vsock)),
            virtio("console", Box::new(Console::new(None, ConsoleOutput::writer(io::sink())))),
        ];
        devices.extend(platform::rest());
        if platform::ACPI_HAS_CLOCK {
            devices.push(Box::new(platform::clock()));
        }
        if self.pci {
            devices.insert(0, Box::new(bus.host("pci")));
        }
        let mut own = self.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.push(Own { calls, generation, network: ours });
        Ok(devices)
    }
}

/// An image over another one, which takes what its guest writes.
fn overlay(path: &Path, base: &Path, format: ImageFormat) -> Made<Qcow2> {
    let folder = base.parent().ok_or("a disk without a folder")?;
    let options = Qcow2Options::new(OpenMode::ReadWrite).with_backing_folder(folder);
    Ok(Qcow2::overlay(path, base, format, &options)?)
}

/// Waits for a guest's call, and answers it. A call that the guest has given up, because it took too long, says nothing.
fn answer(calls: &UnixListener) -> Made<String> {
    calls.set_nonblocking(true)?;
    let since = Instant::now();
    while since.elapsed() < LIMIT {
        let stream = match calls.accept() {
            Ok((stream, _)) => stream,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            Err(e) => return Err(e.into()),
        };
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(LIMIT))?;
        let mut line = String::new();
        let read = BufReader::new(&stream).read_line(&mut line);
        if read.is_ok() && line.ends_with('\n') && (&stream).write_all(b"thank you\n").is_ok() {
            return Ok(line.trim_end().to_owned());
        }
    }
    Err("a guest does not call".into())
}

/// Calls a guest, and returns what it says.
fn ask(socket: &Path) -> Made<String> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    writeln!(&stream, "CONNECT {PORT}")?;
    let mut lines = BufReader::new(&stream).lines();
    match (lines.next().transpose()?, lines.next().transpose()?) {
        (Some(ok), Some(line)) if ok.starts_with("OK ") => Ok(line),
        (said, _) => Err(format!("a guest does not answer: {said:?}").into()),
    }
}

/// Reads what a guest sends to its network, and counts the bytes.
fn count(network: &UnixStream) -> Made<Arc<AtomicU64>> {
    let (mut network, bytes) = (network.try_clone()?, Arc::new(AtomicU64::new(0)));
    let counted = Arc::clone(&bytes);
    thread::spawn(move || {
        let mut buffer = [0; 65536];
        while let Ok(len @ 1..) = network.read(&mut buffer) {
            counted.fetch_add(len as u64, Ordering::Relaxed);
        }
    });
    Ok(bytes)
}

fn main() -> Result<(), Failure> {
    let args = Args::parse();
    raise_descriptor_limit()?;
    let folder = std::env::temp_dir().join(format!("fork-example-{}", std::process::id()));
    fs::create_dir(&folder)?;
    let done = fork(&args, &folder);
    fs::remove_dir_all(&folder)?;
    done.map_err(|e| e.to_string().into())
}

fn fork(args: &Args, folder: &Path) -> Made<()> {
    let mut out = io::stdout();
    let kvm = Kvm::open()?;
    let base = folder.join("base.img");
    File::create(&base)?.set_len(DISK)?;
    let io = Arc::new(SharedLoop::new("io")?);
    let maker = Maker { folder: folder.to_owned(), io, pci: args.pci, own: Mutex::default() };

    // The parent, until it calls.
    let console = if args.console { format!("console={}", platform::CONSOLE) } else { "quiet".to_owned() };
    let linux = Linux::new(&args.kernel).cmdline(format!("{console} panic=-1")).initrd(&args.initrd);
    let parents_disk = folder.join("parent.qcow2");
    let start = Instant::now();
    let parent = Machine::builder("parent")
        .memory(RamConfig::new(args.memory))
        .payload(platform::by_acpi(linux))
        .devices(maker.devices(0, overlay(&parents_disk, &base, ImageFormat::Raw)?, args.console)?)
        .build(&kvm)?;
    let sent = match &maker.own.lock().unwrap_or_else(PoisonError::into_inner)[..] {
        [own, ..] => count(&own.network)?,
        [] => return Err("there is no parent".into()),
    };
    parent.start()?;
    let owner = |number: usize| {
        let own = maker.own.lock().unwrap_or_else(PoisonError::into_inner);
        own.get(number).map(|own| (own.calls.try_clone(), own.generation))
    };
    let call = |number: usize| -> Made<(String, GenerationId)> {
        let (calls, generation) = owner(number).ok_or("there is no such guest")?;
        Ok((answer(&calls?)?, generation))
    };
    let (line, generation) = call(0)?;
    writeln!(out, "parent {line} generation={generation} (booted in {:.2?})", start.elapsed())?;

    // Its memory and its disk at one moment; then it goes on.
    let frozen = folder.join("frozen.qcow2");
    let start = Instant::now();
    let paused = parent.pause()?;
    let template = paused.template()?;
    fs::copy(&parents_disk, &frozen)?;
    paused.resume()?;
    let stopped = start.elapsed();

    let clock = if args.catch_up { GuestClock::CatchUp } else { GuestClock::Continue };
    let plan = ForkPlan::new(args.children, clock, |child| {
        let disk = overlay(&folder.join(format!("child-{child}.qcow2")), &frozen, ImageFormat::Qcow2)?;
        maker.devices(child + 1, disk, false)
    });
    let start = Instant::now();
    let sent_before = sent.load(Ordering::Relaxed);
    let children = template.fork(&kvm, &plan)?;
    let forked = start.elapsed();

    let mut answered = Vec::new();
    for child in 0..children.len() {
        let (line, generation) = call(child + 1)?;
        answered.push(start.elapsed());
        writeln!(out, "child {child} {line} generation={generation}")?;
    }
    // By now each has written to its disk and its memory: none sees what another one wrote.
    for child in 0..children.len() {
        let line = ask(&folder.join(format!("vsock-{}", child + 1)))?;
        writeln!(out, "child {child} again {line}")?;
    }
    writeln!(out)?;
    writeln!(out, "parent paused   {stopped:.2?}, once")?;
    writeln!(
        out,
        "fork            {:.2?} for each child, devices included",
        forked / args.children.max(1) as u32
    )?;
    for (which, at) in [("first", answered.first()), ("last", answered.last())] {
        writeln!(out, "{which:<5} answer    {:.2?} after the fork began", at.copied().unwrap_or_default())?;
    }
    writeln!(out, "{:<15} {:>12} {:>12} {:>12}", "memory in KiB", "unique", "shared", "reclaimable")?;
    for (child, machine) in children.iter().enumerate() {
        let usage = machine.memory_usage()?;
        let [unique, shared, reclaimable] =
            [usage.unique, usage.shared, usage.reclaimable].map(|bytes| bytes >> 10);
        writeln!(out, "child {child:<9} {unique:>12} {shared:>12} {reclaimable:>12}")?;
    }

    // The parent goes on, and has what it had.
    writeln!(out, "parent again {}", ask(&folder.join("vsock-0"))?)?;
    if let Some(outcome) = parent.outcome() {
        return Err(format!("the parent has ended: {outcome:?}").into());
    }
    let since = Instant::now();
    while sent.load(Ordering::Relaxed) == sent_before {
        if since.elapsed() > LIMIT {
            return Err("the parent sends nothing any more".into());
        }
        thread::sleep(Duration::from_millis(1));
    }
    writeln!(out, "the parent runs")?;
    Ok(())
}
