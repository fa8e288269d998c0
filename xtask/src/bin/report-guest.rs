//! The first process of the guests that `cargo xtask report` measures: built by `rustc` alone, static, without
//! any crate. Linux hands it the words of the kernel command line that have `=` in them as environment.
//!
//! `report=boot` says that it runs and powers off; `report=stamps` also loads drivers, and writes 1 before and 2
//! after that to the boot timer's port. `report=idle` loads drivers, says so, and sleeps. `report=io` reads and
//! writes its disk, then talks to the host over the network.
//!
//! `report_end=reboot` says that the VMM ends at a reset rather than at a power-off.
//!
//! What it prints, one line each: `@@init`, `@@idle`, `@@begin NAME`, an empty line when the work is done, and
//! `@@end NAME KEY=VALUE...`. Around the work it sleeps, so that the host can read its counters.

use std::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// `O_DIRECT`.
const DIRECT: i32 = if cfg!(target_arch = "aarch64") { 0o200000 } else { 0o40000 };
const MIB: usize = 1 << 20;
/// How long the host has for reading its counters.
const QUIET: Duration = Duration::from_millis(200);

fn main() {
    println!("@@init");
    let what = std::env::var("report").unwrap_or_default();
    let done = match what.as_str() {
        "stamps" => stamps(),
        "idle" => idle(),
        "io" => io(),
        _ => Ok(()),
    };
    if let Err(error) = done {
        println!("@@failed {error}");
    }
    // Returns only if it cannot: a first process that ends is a kernel panic, which the host sees.
    let end = std::env::var("report_end").unwrap_or_else(|_| "poweroff".to_owned());
    let _ = busybox(&[&end, "-f"]);
}

/// The number that follows `name=` on the kernel command line.
fn number(name: &str) -> Result<usize> {
    Ok(std::env::var(name).map_err(|_| format!("no {name}= on the command line"))?.parse()?)
}

fn busybox(arguments: &[&str]) -> Result<()> {
    let status = Command::new("/bin/busybox").args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("{arguments:?}: {status}").into()) }
}

fn load_drivers() -> Result<()> {
    busybox(&["mount", "-t", "proc", "proc", "/proc"])?;
    busybox(&["mount", "-t", "devtmpfs", "dev", "/dev"])?;
    let modules = fs::read_to_string("/etc/modules")?;
    busybox(&["modprobe", "-a"].into_iter().chain(modules.split_whitespace()).collect::<Vec<_>>())
}

fn stamps() -> Result<()> {
    Command::new("/bin/stamp-1").status()?;
    load_drivers()?;
    Command::new("/bin/stamp-2").status()?;
    Ok(())
}

fn idle() -> Result<()> {
    // The host reads its counters.
    thread::sleep(QUIET);
    load_drivers()?;
    println!("@@idle");
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn io() -> Result<()> {
    load_drivers()?;
    let size = number("disk_mib")? * MIB;
    let disk = OpenOptions::new().read(true).write(true).custom_flags(DIRECT).open("/dev/vda")?;
    phase("disk-read", size / MIB, || sequential(size, |buffer, at| disk.read_exact_at(buffer, at)))?;
    phase("disk-write", size / MIB, || sequential(size, |buffer, at| disk.write_all_at(buffer, at)))?;
    let reads = number("reads")?;
    phase("disk-random-1", reads, || random(&disk, size, reads, 1))?;
    phase("disk-random-32", reads, || random(&disk, size, reads, 32))?;

    busybox(&["ip", "address", "add", "10.77.0.2/24", "dev", "eth0"])?;
    busybox(&["ip", "link", "set", "eth0", "up"])?;
    let port = u16::try_from(number("port")?)?;
    let mut peer = connect(port)?;
    let size = number("net_mib")? * MIB;
    phase("net-send", size / MIB, || {
        let block = vec![0x55; 256 << 10];
        for _ in 0..size / block.len() {
            peer.write_all(&block)?;
        }
        // The peer has it all.
        Ok(peer.read_exact(&mut [0])?)
    })?;
    phase("net-receive", size / MIB, || {
        peer.write_all(b"!")?;
        let mut block = vec![0; 256 << 10];
        let mut left = size;
        while left > 0 {
            match peer.read(&mut block)? {
                0 => return Err("the peer has gone".into()),
                length => left = left.saturating_sub(length),
            }
        }
        Ok(())
    })
}

/// The card may take a moment until it has a link.
fn connect(port: u16) -> Result<TcpStream> {
    let start = Instant::now();
    loop {
        match TcpStream::connect(("10.77.0.1", port)) {
            Ok(peer) => return Ok(peer),
            Err(error) if start.elapsed() > Duration::from_secs(20) => return Err(error.into()),
            Err(_) => thread::sleep(Duration::from_millis(50)),
        }
    }
}

fn phase(name: &str, operations: usize, work: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("@@begin {name}");
    thread::sleep(QUIET);
    let interrupts = virtio_interrupts()?;
    let start = Instant::now();
    work()?;
    let time = start.elapsed().as_nanos();
    let interrupts = virtio_interrupts()? - interrupts;
    println!();
    thread::sleep(QUIET);
    println!("@@end {name} ns={time} operations={operations} interrupts={interrupts}");
    Ok(())
}

/// Requests of one MiB, one after the other.
fn sequential(size: usize, transfer: impl Fn(&mut [u8], u64) -> std::io::Result<()>) -> Result<()> {
    with_page_aligned(MIB, |buffer| {
        for at in (0..size).step_by(MIB) {
            transfer(buffer, at as u64)?;
        }
        Ok(())
    })
}

/// Reads of 4 KiB, `depth` of them at a time.
fn random(disk: &File, size: usize, count: usize, depth: usize) -> Result<()> {
    let next = AtomicUsize::new(0);
    let reader = || {
        with_page_aligned(4096, |buffer| {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= count {
                    return Ok(());
                }
                // A walk over all pages of the disk in an order that nobody can foresee.
                let page = (index * 7919 + 13) % (size / 4096);
                disk.read_exact_at(buffer, page as u64 * 4096)?;
            }
        })
        .map_err(|error| error.to_string())
    };
    thread::scope(|scope| {
        let readers: Vec<_> = (0..depth).map(|_| scope.spawn(reader)).collect();
        for reader in readers {
            reader.join().map_err(|_| "a reader panicked")??;
        }
        Ok(())
    })
}

fn with_page_aligned(len: usize, work: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
    let mut memory = vec![0; len + 4096];
    let start = memory.as_ptr().align_offset(4096);
    work(&mut memory[start..start + len])
}

/// Interrupts of all virtio devices so far.
fn virtio_interrupts() -> Result<u64> {
    let text = fs::read_to_string("/proc/interrupts")?;
    let lines = text.lines().filter(|line| line.contains("virtio"));
    // "  5:  123   IO-APIC   5-edge   virtio0", with a column for each CPU.
    let counts = |line: &str| -> u64 {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok()).sum()
    };
    Ok(lines.map(counts).sum())
}
