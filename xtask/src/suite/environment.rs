//! The places in which tests run.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use super::joined;
use super::plan::{self, Entry};
use crate::arch::Arch;
use crate::host::Kvm;
use crate::nested::{self, Job, Machine};
use crate::process::{self, quote_path};
use crate::{Context, Result, cross, paths};

/// How many nested machines share a plan.
const MACHINES: usize = 2;

/// Which KVM a place has in which tests run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Environment {
    /// This host with `/dev/kvm` hidden: what must not need it.
    Hidden,
    /// This host and its own `/dev/kvm`, whatever that can do.
    Own,
    /// A KVM that runs stock kernels: this host's if it can, otherwise the nested machine's.
    Full,
}

impl Environment {
    /// Where a test binary belongs, by the name of its target.
    pub fn of(target: &str) -> Environment {
        if target.starts_with("guest_") {
            Environment::Full
        } else if target.starts_with("kvm_") {
            Environment::Own
        } else {
            Environment::Hidden
        }
    }

    /// The step that runs the tests which belong here, other than benches.
    pub fn step(self) -> &'static str {
        match self {
            Environment::Hidden => "unit",
            Environment::Own => "kvm",
            Environment::Full => "guest",
        }
    }

    /// How long one test may take.
    pub fn limit(self) -> Duration {
        match self {
            Environment::Hidden | Environment::Own => Duration::from_secs(600),
            Environment::Full => Duration::from_secs(900),
        }
    }

    /// Runs the tests; returns what became of each.
    ///
    /// # Errors
    /// The place cannot be had.
    pub fn run(self, entries: &[Entry]) -> Result<Vec<Option<bool>>> {
        match (self, Kvm::detect()) {
            (Environment::Hidden, _) => without_kvm(entries),
            (Environment::Own, Kvm::Full | Kvm::Limited) | (Environment::Full, Kvm::Full) => {
                on_host(entries, &[])
            }
            (Environment::Own | Environment::Full, kvm) => {
                println!("  {}", kvm.summary());
                in_nested_machines(Nested::of(Arch::HOST), entries)
            }
        }
    }
}

/// A nested machine in which tests run.
#[derive(Clone, Copy, Debug)]
pub struct Nested {
    /// Its architecture.
    pub arch: Arch,
    /// See [`Machine::gic_v2`].
    pub gic_v2: bool,
}

impl Nested {
    /// One of an architecture.
    pub fn of(arch: Arch) -> Nested {
        Nested { arch, gic_v2: false }
    }
}

fn without_kvm(entries: &[Entry]) -> Result<Vec<Option<bool>>> {
    if !Path::new("/dev/kvm").exists() {
        return on_host(entries, &[]);
    }
    let mut hide = vec!["unshare", "--mount"];
    if !process::is_root() {
        hide.extend(["--user", "--map-root-user"]);
    }
    hide.extend(["sh", "-c", "mount --bind /dev/null /dev/kvm && exec \"$@\"", "sh"]);
    let mut trial = process::command(hide[0]);
    if process::output(trial.args(&hide[1..]).arg("true")).is_err() {
        println!("  /dev/kvm stays visible: this user may not create a mount namespace");
        hide.clear();
    }
    on_host(entries, &hide)
}

/// Runs the plan in a process of its own, started by the words of `launcher`.
fn on_host(entries: &[Entry], launcher: &[&str]) -> Result<Vec<Option<bool>>> {
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).context(folder.display())?;
    let plan = folder.join(format!("{}-host.plan", std::process::id()));
    let results = plan.with_extension("results");
    plan::write(&plan, entries)?;
    let at_a_time = thread::available_parallelism().map_or(2, usize::from);
    let program = own_program()?;
    let mut words: Vec<&std::ffi::OsStr> = launcher.iter().map(AsRef::as_ref).collect();
    words.push(program.as_os_str());
    let mut command = process::command(words[0]);
    command.args(&words[1..]).arg("run-plan").arg(&plan).arg(&results).arg(at_a_time.to_string());
    process::run(&mut command)?;
    let outcomes = plan::read_results(&results, entries.len());
    for entry in fs::read_dir(&folder).context(folder.display())?.flatten() {
        if entry.file_name().to_string_lossy().starts_with(&format!("{}-host.", std::process::id())) {
            fs::remove_file(entry.path()).context(entry.path().display())?;
        }
    }
    Ok(outcomes)
}

/// Runs tests in such nested machines, two side by side; returns what became of each.
///
/// # Errors
/// There is no such machine.
pub fn in_nested_machines(nested: Nested, entries: &[Entry]) -> Result<Vec<Option<bool>>> {
    let mut outcomes = once_in_nested_machines(nested, entries)?;
    // The emulator can stand still; a fault of ours shows again in a new machine.
    let again: Vec<usize> =
        (0..entries.len()).filter(|&index| outcomes.get(index) != Some(&Some(true))).collect();
    if !again.is_empty() {
        println!("  {} did not pass: once more, in new nested machines", again.len());
        let some: Vec<Entry> = again.iter().filter_map(|&index| entries.get(index).cloned()).collect();
        for (index, outcome) in again.into_iter().zip(once_in_nested_machines(nested, &some)?) {
            outcomes[index] = outcome;
        }
    }
    Ok(outcomes)
}

/// The same, without a second attempt.
///
/// # Errors
/// There is no such machine.
pub fn once_in_nested_machines(nested: Nested, entries: &[Entry]) -> Result<Vec<Option<bool>>> {
    let count = MACHINES.min(entries.len()).max(1);
    let mut machines: Vec<Machine> = (0..count).map(|_| Machine::of(nested.arch)).collect::<Result<_>>()?;
    let taken = machines[0].shared().join("taken");
    fs::create_dir(&taken).context(taken.display())?;
    fs::write(taken.join(plan::MARK), "").context(taken.display())?;
    for machine in &mut machines {
        machine.gic_v2 = nested.gic_v2;
        machine.common = Some(taken.clone());
    }
    let all: Vec<Result<Vec<Option<bool>>>> = thread::scope(|scope| {
        let running: Vec<_> =
            machines.iter().map(|machine| scope.spawn(|| in_nested_machine(machine, entries))).collect();
        running.into_iter().map(|machine| joined(machine, "the thread of a nested machine")).collect()
    });
    let mut outcomes = vec![None; entries.len()];
    for of_machine in all {
        for (place, outcome) in outcomes.iter_mut().zip(of_machine?) {
            *place = place.or(outcome);
        }
    }
    Ok(outcomes)
}

/// Runs what no other machine has taken.
fn in_nested_machine(machine: &Machine, entries: &[Entry]) -> Result<Vec<Option<bool>>> {
    let plan = machine.shared().join("plan");
    let results = machine.shared().join("results");
    plan::write(&plan, entries)?;
    let taken = machine.shared().join(nested::COMMON);
    let words = [runner(machine.arch())?, "run-plan".into(), plan, results.clone(), "1".into(), taken];
    let words: Vec<String> = words.iter().map(|word| quote_path(word)).collect();
    let job =
        Job { limit: Some(Duration::from_secs(40 * 60)), ..Job::new(format!("exec {}", words.join(" "))) };
    let ended = machine.run(&job, &mut Lines::new(io::stdout()), &mut Lines::new(io::stderr()));
    let outcomes = plan::read_results(&results, entries.len());
    match ended {
        Ok(0) => {}
        Ok(code) => println!("  the nested machine's part ended with exit code {code}"),
        // What ran before counts; what did not run is reported as such.
        Err(error) => println!("  {error}"),
    }
    Ok(outcomes)
}

/// This program for an architecture, once it is built.
///
/// # Errors
/// Its path cannot be told.
pub fn runner(arch: Arch) -> Result<PathBuf> {
    if arch.is_host() {
        own_program()
    } else {
        Ok(paths::target().join(arch.facts().target).join(cross::PROFILE).join("xtask"))
    }
}

fn own_program() -> Result<PathBuf> {
    std::env::current_exe().context("this program's own path")
}

/// Passes on whole lines, so that those of machines running side by side do not mix.
pub(super) struct Lines<W: Write> {
    to: W,
    pending: Vec<u8>,
}

impl<W: Write> Lines<W> {
    pub(super) fn new(to: W) -> Lines<W> {
        Lines { to, pending: Vec::new() }
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.pending.extend_from_slice(bytes);
        if let Some(end) = self.pending.iter().rposition(|&byte| byte == b'\n') {
            self.to.write_all(&self.pending[..=end])?;
            self.pending.drain(..=end);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Drop for Lines<W> {
    fn drop(&mut self) {
        // Nothing is left to tell when the terminal has gone.
        let _ = self.to.write_all(&self.pending);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_target_says_where_it_runs() {
        assert_eq!(Environment::of("guest_boot"), Environment::Full);
        assert_eq!(Environment::of("kvm_run"), Environment::Own);
        assert_eq!(Environment::of("ossature_bus"), Environment::Hidden);
    }

    #[test]
    fn lines_stay_whole() {
        let mut seen = Vec::new();
        let mut lines = Lines::new(&mut seen);
        lines.write_all(b"one\ntw").unwrap();
        assert_eq!(lines.to, b"one\n");
        lines.write_all(b"o\nthree").unwrap();
        drop(lines);
        assert_eq!(seen, b"one\ntwo\nthree");
    }
}
