//! The part of `cargo xtask report` that runs where the guests run: starts each VMM in turn and takes its figures.
//! Every VMM is measured by the same means, from outside.

mod child;
mod io;
mod kernel;
mod memory;
mod root;
pub mod strace;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::arch::Arch;
use crate::report::contender::{Contender, Guest, Part};
use crate::report::figures::{Figures, Measured, NATIVE};
use crate::report::options::Options;
use crate::{Context, Error, Result, process};
use child::Child;
use root::Root;

/// What each VMM may take for one guest: far more than an emulated processor needs.
const LIMIT: Duration = Duration::from_secs(900);
/// How long a guest may take to power off.
const GRACE: Duration = Duration::from_secs(30);
const TAP: &str = "tap-report";

/// How often a program that does nothing is started, and a VMM for its start by the clock.
const STARTS: u32 = 7;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Everything but [`NATIVE`].
    All,
    /// [`NATIVE`] alone, on a KVM that may not run stock kernels.
    Native,
}

/// Takes all figures. `input` is the folder that the host has prepared. The figures are written to `output` as they
/// come; what an earlier call has left there is not measured again.
///
/// # Errors
/// What is needed to measure at all is missing. A VMM that fails is part of the result.
pub fn run(options: &Options, input: &Path, output: &Path, scope: Scope) -> Result<()> {
    let work = PathBuf::from(format!("/dev/shm/ossature-report-{}", std::process::id()));
    fs::create_dir_all(&work).context(work.display())?;
    let measured = Measure::new(options, input, &work, output).and_then(|mut measure| match scope {
        Scope::All => measure.all(),
        Scope::Native => measure.native(),
    });
    root::unmount(&work)?;
    fs::remove_dir_all(&work).context(work.display())?;
    measured
}

/// What is measured, and the function that measures it for one VMM.
type Step<'a> = (&'static str, fn(&mut Measure<'a>, usize) -> Result<()>);

struct Measure<'a> {
    options: &'a Options,
    guest: Guest,
    contenders: Vec<Contender>,
    root: Root,
    /// What starting a program takes that does nothing, in seconds.
    nothing: f64,
    output: PathBuf,
    figures: Figures,
}

impl<'a> Measure<'a> {
    fn new(options: &'a Options, input: &Path, work: &Path, output: &Path) -> Result<Measure<'a>> {
        for name in ["kernel", "bzimage", "initrd", "microvm", "floor"] {
            let (from, to) = (input.join(name), work.join(name));
            if name == "floor" && !from.exists() {
                continue;
            }
            fs::copy(&from, &to).context(from.display())?;
        }
        let disk = work.join("disk");
        fs::write(&disk, vec![0x55; options.disk_mib() << 20]).context(disk.display())?;
        kernel::mount();
        tap(TAP)?;
        let mut contenders = options.contenders(Arch::HOST, &work.join("microvm"), &work.join("floor"));
        for program in contenders.iter_mut().filter_map(|contender| contender.words.first_mut()) {
            if let Some(path) = find_program(program) {
                *program = path.to_string_lossy().into_owned();
            }
        }
        let guest = Guest {
            folder: work.to_owned(),
            cmdline: String::new(),
            memory: options.memory,
            cpus: options.cpus,
            tap: TAP.to_owned(),
        };
        let figures = if output.exists() {
            Figures::from_json(&fs::read_to_string(output).context(output.display())?)?
        } else {
            let measured = |contender: &Contender| Measured {
                about: contender.about.clone(),
                command: contender.words.join(" "),
                ..Measured::new(&contender.name)
            };
            Figures { contenders: contenders.iter().map(measured).collect(), ..Figures::default() }
        };
        let root = Root::new(work)?;
        figures.files.iter().for_each(|file| root.add(Path::new(file)));
        let nothing =
            (0..STARTS).map(|_| Child::start(&root.nothing(), LIMIT)?.wait()).collect::<Result<Vec<_>>>()?;
        let nothing = nothing.into_iter().min().unwrap_or_default().as_secs_f64();
        Ok(Measure { options, guest, contenders, root, nothing, output: output.to_owned(), figures })
    }

    /// Every VMM in turn for each figure, and that as often as was asked for.
    fn all(&mut self) -> Result<()> {
        let once: [Step<'a>; 1] = [("system calls", Self::calls)];
        let repeated: [Step<'a>; 4] = [
            ("first run", Self::first_run),
            ("boot", Self::boot),
            ("timeline", Self::timeline),
            ("disk and network", Self::io),
        ];
        let last: [Step<'a>; 2] = [("guest time", Self::guest_time), ("memory and exits", Self::idle)];
        let is_taken = |(name, _): &Step<'_>| {
            !self.options.boots || !["disk and network", "memory and exits"].contains(name)
        };
        let (repeated, last): (Vec<_>, Vec<_>) =
            (repeated.into_iter().filter(is_taken).collect(), last.into_iter().filter(is_taken).collect());
        self.round(1, &once)?;
        for run in 1..=self.options.runs() {
            self.round(run, &repeated)?;
        }
        self.round(1, &last)?;
        for (contender, measured) in self.contenders.iter().zip(&mut self.figures.contenders) {
            if let Some(size) = contender.words.first().and_then(|path| fs::metadata(path).ok()) {
                measured.add("binary", size.len() as f64);
            }
            if let (Some(end), Some(guest)) = (measured.least("end"), measured.least("guest")) {
                measured.add("share", end - guest);
            }
        }
        self.save()
    }

    /// Starts by the clock, each VMM in turn.
    fn native(&mut self) -> Result<()> {
        for run in 1..=STARTS {
            self.round(run, &[("start by the clock", Self::start_by_the_clock)])?;
        }
        self.save()
    }

    fn save(&self) -> Result<()> {
        // Whole or not at all: the machine may be turned off at any time.
        let part = self.output.with_extension("part");
        fs::write(&part, self.figures.to_json().to_string()).context(part.display())?;
        fs::rename(&part, &self.output).context(self.output.display())
    }

    fn round(&mut self, run: u32, steps: &[Step<'a>]) -> Result<()> {
        for (what, step) in steps {
            for index in 0..self.contenders.len() {
                let name =
                    self.contenders.get(index).map(|contender| contender.name.clone()).unwrap_or_default();
                let step_name = format!("{what} of {name}, run {run}");
                if self.figures.done.contains(&step_name) {
                    continue;
                }
                eprintln!("report: {step_name}");
                if let Err(error) = step(self, index) {
                    eprintln!("report: {step_name}: {error}");
                    self.figures.failures.push(format!("{step_name}: {error}"));
                }
                self.figures.done.push(step_name);
                self.save()?;
            }
        }
        Ok(())
    }

    fn takes_part(&self, index: usize, least: Part) -> bool {
        match self.contenders.get(index).map(|contender| contender.part) {
            Some(Part::Whole) => true,
            Some(Part::Boots) => least != Part::Whole,
            Some(Part::Start) => least == Part::Start,
            None => false,
        }
    }

    fn add(&mut self, index: usize, metric: &str, value: f64) {
        if let Some(measured) = self.figures.contenders.get_mut(index) {
            measured.add(metric, value);
        }
    }

    /// The command line of a VMM whose guest does `what`.
    fn command(&mut self, index: usize, what: &str) -> Result<Vec<String>> {
        self.guest.cmdline = format!("{} report={what}", self.options.cmdline(Arch::HOST));
        let config = self.guest.folder.join("config");
        let contender = self.contenders.get(index).ok_or_else(|| Error::new("no such VMM"))?;
        let guest = contender.guest(&self.guest);
        fs::write(&config, guest.firecracker_config()).context(config.display())?;
        Ok(contender.command(&self.guest))
    }

    /// The command line that runs it in the root folder.
    fn rooted_command(&mut self, index: usize, what: &str) -> Result<Vec<String>> {
        let words = self.command(index, what)?;
        Ok(self.root.words(&words))
    }

    /// Also copies whatever the VMM opens into the root folder.
    fn calls(&mut self, index: usize) -> Result<()> {
        let log = self.guest.folder.join("strace");
        let mut words: Vec<String> = ["strace", "-f", "-o"].map(str::to_owned).to_vec();
        words.push(log.to_string_lossy().into_owned());
        words.extend(self.command(index, "boot")?);
        let mut child = Child::start(&words, LIMIT)?;
        child.wait()?;
        let text = fs::read(&log).context(log.display())?;
        let text = String::from_utf8_lossy(&text);
        let files = strace::files(&text);
        files.iter().for_each(|file| self.root.add(Path::new(file)));
        self.figures.files.extend(files);
        let calls = strace::before_first_run(&text)
            .ok_or_else(|| Error::new(format!("it never ran a guest\n{}", child.said())))?;
        self.add(index, "calls", calls.all.into());
        self.add(index, "ioctls", calls.ioctls.into());
        Ok(())
    }

    fn first_run(&mut self, index: usize) -> Result<()> {
        let words = self.rooted_command(index, "boot")?;
        let Some(recorder) = kernel::Recorder::start() else { return Ok(()) };
        let mut child = Child::start(&words, LIMIT)?;
        while !recorder.has_run() && !child.has_ended()? {
            std::thread::sleep(Duration::from_millis(50));
        }
        let time = recorder.exec_to_run(child.id());
        child.kill()?;
        match time {
            Some(time) => self.add(index, "first-run", time),
            None => return Err(Error::new(format!("it never ran a guest\n{}", child.said()))),
        }
        Ok(())
    }

    fn boot(&mut self, index: usize) -> Result<()> {
        if !self.takes_part(index, Part::Boots) {
            return Ok(());
        }
        let words = self.rooted_command(index, "boot")?;
        let mut child = Child::start(&words, LIMIT)?;
        let init = child.wait_for("@@init")?;
        self.add(index, "init", init.as_secs_f64() - self.nothing);
        // A VMM without a way to power off does not end.
        if let Some(end) = child.wait_at_most(GRACE)? {
            self.add(index, "end", end.as_secs_f64() - self.nothing);
        }
        Ok(())
    }

    /// The whole of a boot that is traced: nothing but the guest's own time is taken of it.
    fn guest_time(&mut self, index: usize) -> Result<()> {
        // Of several vCPUs that wait for each other, no sum is anybody's time.
        if !self.takes_part(index, Part::Boots) || self.guest.cpus != 1 {
            return Ok(());
        }
        let words = self.rooted_command(index, "boot")?;
        let Some(tracer) = kernel::GuestTime::start() else { return Ok(()) };
        let mut child = Child::start(&words, LIMIT)?;
        child.wait_for("@@init")?;
        if child.wait_at_most(GRACE)?.is_some() {
            let time = tracer.read().ok_or_else(|| Error::new("the trace of its guest is not complete"))?;
            self.add(index, "guest", time);
        }
        Ok(())
    }

    /// The start on a KVM that may not run the guest any further.
    fn start_by_the_clock(&mut self, index: usize) -> Result<()> {
        let log = self.guest.folder.join("strace");
        fs::write(&log, "").context(log.display())?;
        // It stops the VMM at its ioctls, and nowhere else. setpriv: the VMM ends with strace.
        let mut words: Vec<String> =
            ["strace", "-f", "--seccomp-bpf", "-ttt", "-e", "trace=execve,ioctl", "-e", "signal=none", "-o"]
                .map(str::to_owned)
                .to_vec();
        words.push(log.to_string_lossy().into_owned());
        words.extend(["setpriv", "--pdeathsig", "KILL"].map(str::to_owned));
        // In the host's root folder: the files have been read by the quickest start.
        words.extend(self.command(index, "boot")?);
        let mut child = Child::start(&words, LIMIT)?;
        let time = loop {
            let has_ended = child.has_ended()?;
            let text = fs::read(&log).context(log.display())?;
            let time = strace::exec_to_run(&String::from_utf8_lossy(&text));
            if time.is_some() || has_ended {
                break time;
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        child.kill()?;
        let time = time.ok_or_else(|| Error::new(format!("it never ran a guest\n{}", child.said())))?;
        self.add(index, NATIVE, time);
        Ok(())
    }

    /// The guest has loaded its drivers and sleeps.
    fn idle(&mut self, index: usize) -> Result<()> {
        if !self.takes_part(index, Part::Whole) {
            return Ok(());
        }
        let words = self.rooted_command(index, "idle")?;
        let mut child = Child::start(&words, LIMIT)?;
        child.wait_for("@@init")?;
        let exits = kernel::kvm_statistics(child.id());
        child.wait_for("@@idle")?;
        std::thread::sleep(Duration::from_secs(1));
        let file = |name: &str| {
            let path = format!("/proc/{}/{name}", child.id());
            fs::read_to_string(&path).context(path)
        };
        let memory = memory::of(&file("smaps")?, u64::from(self.guest.memory) << 20);
        let status = file("status")?;
        let threads = status.lines().find_map(|line| line.strip_prefix("Threads:")?.trim().parse().ok());
        child.kill()?;
        for (name, value) in exits {
            self.add(index, &format!("exits.{name}"), value as f64);
        }
        self.add(index, "written", memory.written as f64);
        self.add(index, "private", memory.private as f64);
        self.add(index, "resident", memory.resident as f64);
        if let Some(threads) = threads {
            self.add(index, "threads", threads);
        }
        Ok(())
    }

    /// What our VMM says about itself, in the run in which it was the quickest.
    fn timeline(&mut self, index: usize) -> Result<()> {
        // The boot timer is a port.
        if index != 0 || Arch::HOST != Arch::X86_64 {
            return Ok(());
        }
        let mut words = self.rooted_command(index, "stamps")?;
        words.push("--boot-timer".to_owned());
        let recorder = kernel::Recorder::start();
        let mut child = Child::start(&words, LIMIT)?;
        child.wait()?;
        let time = recorder.and_then(|recorder| recorder.exec_to_run(child.id()));
        if self.figures.exec_to_run.is_none_or(|least| time.is_some_and(|time| time < least)) {
            self.figures.exec_to_run = time;
            self.figures.boot_timer = child.said();
        }
        Ok(())
    }
}

/// A tap with the host's address, made anew.
fn tap(name: &str) -> Result<()> {
    let ip = |words: &[&str]| process::output(process::command("ip").args(words)).map(drop);
    if Path::new("/sys/class/net").join(name).exists() {
        ip(&["link", "delete", name])?;
    }
    ip(&["tuntap", "add", name, "mode", "tap"])?;
    ip(&["address", "add", "10.77.0.1/24", "dev", name])?;
    ip(&["link", "set", name, "up"])?;
    ip(&["link", "set", "lo", "up"])
}

/// The file that a command's first word means.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    find_program_in(name, &process::search_path().to_string_lossy())
}

/// The same in a search path.
pub(crate) fn find_program_in(name: &str, path: &str) -> Option<PathBuf> {
    let is_program = |file: &PathBuf| {
        fs::metadata(file).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(is_program);
    }
    path.split(':').map(|folder| Path::new(folder).join(name)).find(is_program)
}

/// Numbers in `text` of the form `name=value`.
fn pairs(text: &str) -> BTreeMap<&str, f64> {
    let pair = |word: &str| -> Option<(usize, f64)> {
        let at = word.find('=')?;
        Some((at, word.get(at + 1..)?.parse().ok()?))
    };
    text.split_whitespace().filter_map(|word| pair(word).map(|(at, value)| (&word[..at], value))).collect()
}
