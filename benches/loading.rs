//! Ways to get a kernel into guest memory, and what each of them costs: `loading VMLINUX INITRD [WAY..]`.
//!
//! Boots the kernel once for each way, each in a process of its own, on the host's `/dev/kvm`, until the guest powers
//! off: `cargo xtask initramfs --job true FILE` makes one that does so when it has booted.

use std::error::Error;
use std::fs::{self, File};
use std::ops::Range;
use std::process::Command;
use std::sync::mpsc;
use std::time::Instant;

use ossature::boot::x86_64::{self, BootProtocol, BootSpec};
use ossature::boot::{ImageSource, Platform};
use ossature::legacy::{AcpiPower, Serial, SerialPort, backend};
use ossature::memory::{Backing, GuestMmap, RamConfig};
use ossature::vmm::machine::{Machine, Outcome, PayloadError};
use ossature::vmm::{Kvm, Registers};

const CMDLINE: &str = "console=ttyS0 8250.nr_uarts=1 quiet panic=-1";
const RAM: u64 = 256 << 20;
/// What the rest of the arguments of a child is.
const CHILD: &str = "--one";

/// Guest memory, whether the images are mapped, and how the kernel is entered.
fn way(name: &str) -> Option<(RamConfig, bool, BootProtocol)> {
    let plain = RamConfig::new(RAM);
    let (ram, mapped) = match name {
        // A bzImage, which all other ways unpack in the VMM.
        UNPACKS_ITSELF => return Some((plain, false, BootProtocol::Linux64)),
        "copy" => (plain, false),
        "map" => (plain, true),
        "copy, memfd" => (plain.backing(Backing::Memfd), false),
        "copy, prefault" => (plain.prefault(true), false),
        "copy, thp" => (plain.thp(true), false),
        "map, thp" => (plain.thp(true), true),
        "copy, 2M pages" => (plain.backing(Backing::Huge2M), false),
        _ => return None,
    };
    Some((ram, mapped, BootProtocol::Auto))
}

const UNPACKS_ITSELF: &str = "unpacks itself";

const WAYS: [&str; 7] =
    ["copy", "map", "copy, memfd", "copy, prefault", "copy, thp", "map, thp", "copy, 2M pages"];

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [kernel, initrd, ways @ ..] = &args[..] else {
        return Err("loading VMLINUX INITRD [WAY..]".into());
    };
    if let [CHILD, name] = *ways.iter().map(String::as_str).collect::<Vec<_>>() {
        return one(kernel, initrd, name);
    }
    println!("{:15}  images, KiB   | built: ms,  KiB of RAM  | powered off: ms, KiB, page", "");
    println!("{:15} mapped copied  |          private shared |         private shared faults", "");
    let all = || WAYS.map(str::to_owned).to_vec();
    for name in if ways.is_empty() { all() } else { ways.to_vec() } {
        let status = Command::new(std::env::current_exe()?).args([kernel, initrd, CHILD, &name]).status()?;
        if !status.success() {
            println!("{name:15} {status}");
        }
    }
    Ok(())
}

fn one(kernel: &str, initrd: &str, name: &str) -> Result<(), Box<dyn Error>> {
    let started = Instant::now();
    let (ram, mapped, protocol) = way(name).ok_or(format!("no way is called {name:?}: {WAYS:?}"))?;
    let (kernel, initrd) = (File::open(kernel)?, File::open(initrd)?);
    let (loaded, report) = mpsc::channel();
    let payload = move |memory: &GuestMmap, platform: &Platform| -> Result<Registers, PayloadError> {
        let source = if mapped { ImageSource::Mapped } else { ImageSource::File };
        let mut spec = BootSpec::new(source(&kernel), CMDLINE);
        spec.initrd = Some(source(&initrd));
        spec.protocol = protocol;
        let booted = x86_64::prepare(memory, platform, &spec)?;
        loaded.send(booted.loaded)?;
        Ok(Registers::from(booted.cpu))
    };
    let machine = Machine::builder("loading")
        .memory(ram)
        .payload(payload)
        .device(AcpiPower::new("power"))
        .device(Serial::new("com1", SerialPort::COM1, backend::file("/dev/null".as_ref())?))
        .build(&Kvm::open()?)?;
    let slot = machine.ram().slots().next().map(|slot| slot.host_addr..slot.host_addr + slot.size);
    let slot = slot.unwrap_or_default();
    let loaded = report.recv()?;
    let built = started.elapsed();
    let before = Touched::of(&slot)?;

    machine.start()?;
    let outcome = machine.wait()?;
    let Outcome::Shutdown = outcome else { return Err(format!("{outcome:?}").into()) };
    let time = started.elapsed();
    let after = Touched::of(&slot)?;
    let stat = fs::read_to_string("/proc/self/stat")?;
    // Behind the program's name, which is in parentheses: proc(5), field 10.
    let faults = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(7)).unwrap_or_default();
    println!(
        "{name:15} {:6} {:6}  | {:7.1} {:8} {:6} | {:7.1} {:7} {:6} {faults:>6}",
        loaded.mapped >> 10,
        loaded.copied >> 10,
        built.as_secs_f64() * 1e3,
        before.private,
        before.shared,
        time.as_secs_f64() * 1e3,
        after.private,
        after.shared,
    );
    Ok(())
}

/// What the host has given to a range of this process, in KiB.
#[derive(Default)]
struct Touched {
    /// Memory that nobody else has.
    private: u64,
    /// Pages of the page cache.
    shared: u64,
}

impl Touched {
    fn of(range: &Range<u64>) -> Result<Self, Box<dyn Error>> {
        let (mut touched, mut rss, mut anonymous) = (Self::default(), 0, 0);
        let (mut inside, mut memfd) = (false, false);
        let smaps = fs::read_to_string("/proc/self/smaps")?;
        for line in smaps.lines().chain(["0-0"]) {
            let mut words = line.split_whitespace();
            let name = words.next().unwrap_or_default();
            let value = || words.clone().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default();
            match name {
                "Rss:" => rss = value(),
                "Anonymous:" => anonymous = value(),
                // Not part of the above.
                "Shared_Hugetlb:" | "Private_Hugetlb:" if inside => touched.private += value(),
                _ if name.ends_with(':') => {}
                // The next mapping.
                _ => {
                    if inside {
                        // Nobody else has our memfd, either.
                        let private = if memfd { rss } else { anonymous };
                        touched.private += private;
                        touched.shared += rss - private;
                    }
                    let start = name.split('-').next().and_then(|start| u64::from_str_radix(start, 16).ok());
                    inside = start.is_some_and(|start| range.contains(&start));
                    memfd = line.contains("/memfd:");
                }
            }
        }
        Ok(touched)
    }
}
