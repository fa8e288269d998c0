//! A machine in a file: saved, killed, restored twice, listed; with a diff of what it wrote then, merged.
//!
//! `cargo run --release --example snapshot` shows all of it; its steps are
//!
//! - `-- save FILE [DIFF]`: a full snapshot, and a diff of it;
//! - `-- restore FILE...`, `-- list FILE...`, `-- check FILE...`: a full snapshot, and the diffs that are based on it, in
//!   order;
//! - `-- merge FILE... TO`: the same as one full snapshot.
//!
//! `list`, `check` and `merge` take snapshots of any machine, such as `microvm`'s. With `--key FILE` before it, a step uses a
//! key of 32 bytes. It needs `/dev/kvm`.

#[cfg(target_arch = "aarch64")]
#[path = "counting/aarch64.rs"]
mod guest;
#[cfg(target_arch = "x86_64")]
#[path = "counting/x86_64.rs"]
mod guest;

use std::env;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::Instant;

use ossature::boot::Platform;
use ossature::memory::vm_memory::{Bytes, GuestAddress};
use ossature::memory::{GuestMmap, RamConfig};
use ossature::vmm::machine::{Machine, Snapshot, SnapshotKey};
use ossature::vmm::{Failure, Kvm};

/// Where the guest counts.
const COUNTER: GuestAddress = GuestAddress(0x2000);

const USAGE: &str = "usage: snapshot [--key FILE] [save FILE [DIFF] | restore FILE... | list FILE... | check FILE... | merge FILE... TO]";

fn main() -> Result<ExitCode, Failure> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let (key, args) = match args[..] {
        ["--key", file, ref args @ ..] if !args.is_empty() => {
            (Some(SnapshotKey::read(File::open(file)?)?), args)
        }
        ref args => (None, args),
    };
    let key = key.as_ref();
    match *args {
        [] => tour()?,
        ["save", file] => save(file, None, key)?,
        ["save", file, diff] => save(file, Some(diff), key)?,
        ["restore", ref files @ ..] if !files.is_empty() => drop(restore(files, "restored", key)?),
        ["list", ref files @ ..] if !files.is_empty() => files.iter().try_for_each(|file| list(file))?,
        ["check", ref files @ ..] if !files.is_empty() => check(files, key)?,
        ["merge", ref files @ .., to] if !files.is_empty() => merge(files, to, key)?,
        _ => {
            writeln!(io::stderr(), "{USAGE}")?;
            return Ok(ExitCode::from(2));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// All of it: another process saves a machine and is killed, and its machine goes on here, twice.
fn tour() -> Result<(), Failure> {
    let folder = env::temp_dir();
    let folder = folder.to_str().ok_or("the folder for temporary files is not UTF-8")?;
    let [full, diff, merged] = ["full", "diff", "merged"]
        .map(|part| format!("{folder}/snapshot-example-{}-{part}", std::process::id()));
    let mut process =
        Command::new(env::current_exe()?).args(["save", &full, &diff]).stdout(Stdio::piped()).spawn()?;
    // Each line that it says; then its guest counts on, until it is killed.
    let lines = BufReader::new(process.stdout.take().ok_or("no pipe")?).lines();
    for line in lines.take(2) {
        writeln!(io::stdout(), "{}", line?)?;
    }
    process.kill()?;
    process.wait()?;
    writeln!(io::stdout(), "killed")?;
    list(&full)?;
    list(&diff)?;
    merge(&[&full, &diff], &merged, None)?;
    // All map the files' memory and see their own changes only.
    let machines = [
        restore(&[&full], "one", None),
        restore(&[&full, &diff], "two, of the diff", None),
        restore(&[&merged], "three, of what was merged", None),
    ];
    for file in [full, diff, merged] {
        std::fs::remove_file(file)?;
    }
    for machine in machines {
        machine?.stop()?;
    }
    Ok(())
}

fn count(machine: &Machine) -> Result<u32, Failure> {
    Ok(machine.ram().dma().read_obj(COUNTER)?)
}

/// Runs a guest that counts, saves it, and then what it has changed, and lets it go on until it is killed.
fn save(file: &str, diff: Option<&str>, key: Option<&SnapshotKey>) -> Result<(), Failure> {
    let mut builder = Machine::builder("saved");
    if let Some(key) = key {
        builder = builder.snapshot_key(key.clone());
    }
    let machine = builder
        .memory(RamConfig::new(64 << 20))
        .payload(|memory: &GuestMmap, _: &Platform| Ok(guest::load(memory)?))
        .build(&Kvm::open()?)?;
    machine.start()?;
    wait_until(&machine, |count| count >= 1000)?;
    // Paused meanwhile, then it goes on.
    let Some(diff) = diff else {
        machine.snapshot(file)?;
        go_on(&machine, file)?;
        machine.wait()?;
        return Ok(());
    };
    let mut checkpoint = machine.checkpoint_at(file)?;
    go_on(&machine, file)?;
    machine.snapshot_diff(&mut checkpoint, diff)?;
    go_on(&machine, diff)?;
    machine.wait()?;
    Ok(())
}

/// Waits until the guest has counted on.
fn go_on(machine: &Machine, saved: &str) -> Result<(), Failure> {
    let from = count(machine)?;
    wait_until(machine, |count| count != from)?;
    writeln!(io::stdout(), "saved to {saved}; the guest has gone on to {}", count(machine)?)?;
    Ok(())
}

fn wait_until(machine: &Machine, is_there: impl Fn(u32) -> bool) -> Result<(), Failure> {
    while !is_there(count(machine)?) {
        thread::yield_now();
    }
    Ok(())
}

fn open(files: &[&str], key: Option<&SnapshotKey>) -> Result<Snapshot, Failure> {
    Ok(match key {
        Some(key) => key.open_chain(files)?,
        None => Snapshot::open_chain(files)?,
    })
}

/// A machine that goes on from a full snapshot, or from the last one of a chain.
fn restore(files: &[&str], name: &str, key: Option<&SnapshotKey>) -> Result<Machine, Failure> {
    let start = Instant::now();
    let machine = Machine::builder(name).restore(open(files, key)?).build(&Kvm::open()?)?;
    let saved = count(&machine)?;
    machine.start()?;
    let took = start.elapsed();
    wait_until(&machine, |count| count != saved)?;
    writeln!(io::stdout(), "{name}: restored in {took:?}, goes on from {saved}, is at {}", count(&machine)?)?;
    Ok(machine)
}

/// What is in the file.
fn list(file: &str) -> Result<(), Failure> {
    let snapshot = Snapshot::open(file)?;
    let mut out = io::stdout();
    let (cpus, size) = (snapshot.cpus(), snapshot.memory_size());
    writeln!(out, "{file}: {}, {cpus} vCPU(s), {} MiB of memory", snapshot.architecture(), size >> 20)?;
    match (snapshot.id(), snapshot.base()) {
        (Some(id), Some(base)) => writeln!(out, "id: {id}, a diff of {base}")?,
        (Some(id), None) => writeln!(out, "id: {id}")?,
        (None, _) => writeln!(out, "id: none, as it has version 1 of the format")?,
    }
    if let Some(key) = snapshot.key_id() {
        writeln!(out, "tree: of key {key}")?;
    }
    writeln!(out, "memory in this file: {} KiB", snapshot.memory_in_file() >> 10)?;
    writeln!(out, "devices: {}", snapshot.devices().collect::<Vec<_>>().join(", "))?;
    writeln!(out, "{:<16} {:<32} {:>7} {:>7}", "section", "kind", "version", "bytes")?;
    for section in snapshot.sections() {
        writeln!(out, "{:<16} {:<32} {:>7} {:>7}", section.id, section.kind, section.version, section.len)?;
    }
    Ok(())
}

/// Compares all of the files with their checksums, or their trees, and each diff with its base.
fn check(files: &[&str], key: Option<&SnapshotKey>) -> Result<(), Failure> {
    open(files, key)?.verify_memory()?;
    writeln!(io::stdout(), "{} is intact", files.join(", "))?;
    Ok(())
}

/// Makes one full snapshot of a chain.
fn merge(files: &[&str], to: &str, key: Option<&SnapshotKey>) -> Result<(), Failure> {
    open(files, key)?.merge(to)?;
    writeln!(io::stdout(), "{} is merged to {to}", files.join(", "))?;
    Ok(())
}
