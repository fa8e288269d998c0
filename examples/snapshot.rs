//! A machine in a file: saved, killed, restored twice, listed.
//!
//! `cargo run --release --example snapshot` shows all of it; `-- save FILE`, `restore FILE`, `list FILE` and `check FILE` are
//! its steps. `list` and `check` take snapshots of any machine, such as `microvm`'s. It needs `/dev/kvm`.

use std::env;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use ossature::boot::Platform;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::{Machine, Snapshot};
use ossature::vmm::{Failure, Kvm, Registers};

const COUNTER: GuestAddress = GuestAddress(0x2000);
const CODE: GuestAddress = GuestAddress(0x1000);
/// inc dword [0x2000]; jmp to itself
const GUEST: &[u8] = &[0x66, 0xff, 0x06, 0x00, 0x20, 0xeb, 0xf9];

const USAGE: &str = "usage: snapshot [save FILE | restore FILE | list FILE | check FILE]";

fn main() -> Result<ExitCode, Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        [] => tour()?,
        ["save", file] => save(file)?,
        ["restore", file] => drop(restore(file, "restored")?),
        ["list", file] => list(file)?,
        ["check", file] => check(file)?,
        _ => {
            writeln!(io::stderr(), "{USAGE}")?;
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// All of it: another process saves a machine and is killed, and its machine goes on here, twice.
fn tour() -> Result<(), Failure> {
    let file = env::temp_dir().join(format!("snapshot-example-{}", std::process::id()));
    let name = file.to_str().ok_or("the folder for temporary files is not UTF-8")?;
    let mut process =
        Command::new(env::current_exe()?).args(["save", name]).stdout(Stdio::piped()).spawn()?;
    // Each line that it says; then its guest counts on, until it is killed.
    let lines = BufReader::new(process.stdout.take().ok_or("no pipe")?).lines();
    for line in lines.take(1) {
        writeln!(io::stdout(), "{}", line?)?;
    }
    process.kill()?;
    process.wait()?;
    writeln!(io::stdout(), "killed")?;
    list(name)?;
    // Both map the file's memory and see their own changes only.
    let machines = ["one", "two"].map(|which| restore(name, which));
    std::fs::remove_file(&file)?;
    for machine in machines {
        machine?.stop()?;
    }
    Ok(())
}

fn count(machine: &Machine) -> Result<u32, Failure> {
    Ok(machine.ram().dma().read_obj(COUNTER)?)
}

/// Runs a guest that counts, saves it, and lets it go on until it is killed.
fn save(file: &str) -> Result<(), Failure> {
    let machine = Machine::builder("saved")
        .memory(RamConfig::new(64 << 20))
        .payload(|memory: &GuestMmap, _: &Platform| {
            memory.write_slice(GUEST, CODE)?;
            Ok(Registers::real_mode(CODE.0 as u16))
        })
        .build(&Kvm::open()?)?;
    machine.start()?;
    while count(&machine)? < 1000 {
        thread::yield_now();
    }
    machine.snapshot(file)?; // paused meanwhile, then it goes on
    let saved = count(&machine)?;
    while count(&machine)? == saved {
        thread::yield_now();
    }
    writeln!(io::stdout(), "saved to {file}; the guest has gone on to {}", count(&machine)?)?;
    machine.wait()?;
    Ok(())
}

/// A machine that goes on from the file.
fn restore(file: &str, name: &str) -> Result<Machine, Failure> {
    let start = Instant::now();
    let machine = Machine::builder(name).restore(Snapshot::open(file)?).build(&Kvm::open()?)?;
    let saved = count(&machine)?;
    machine.start()?;
    let took = start.elapsed();
    while count(&machine)? == saved {
        thread::yield_now();
    }
    writeln!(io::stdout(), "{name}: restored in {took:?}, goes on from {saved}, is at {}", count(&machine)?)?;
    Ok(machine)
}

/// What is in the file.
fn list(file: &str) -> Result<(), Failure> {
    let snapshot = Snapshot::open(file)?;
    let mut out = io::stdout();
    let (cpus, size) = (snapshot.cpus(), snapshot.memory_size());
    writeln!(out, "{file}: {}, {cpus} vCPU(s), {} MiB of memory", snapshot.architecture(), size >> 20)?;
    writeln!(out, "devices: {}", snapshot.devices().collect::<Vec<_>>().join(", "))?;
    writeln!(out, "{:<16} {:<32} {:>7} {:>7}", "section", "kind", "version", "bytes")?;
    for section in snapshot.sections() {
        writeln!(out, "{:<16} {:<32} {:>7} {:>7}", section.id, section.kind, section.version, section.len)?;
    }
    Ok(())
}

/// Compares all of the file with its checksums.
fn check(file: &str) -> Result<(), Failure> {
    Snapshot::open(file)?.verify_memory()?;
    writeln!(io::stdout(), "{file} is intact")?;
    Ok(())
}
