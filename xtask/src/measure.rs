//! The part of `cargo xtask report` that runs where the guests run: starts each VMM in turn and takes its figures.
//! Every VMM is measured by the same means, from outside.

mod child;
mod io;
mod kernel;
mod memory;
mod strace;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::report::contender::{Contender, Guest, Part};
use crate::report::figures::{Figures, Measured};
use crate::report::options::Options;
use crate::{Context, Error, Result, process};
use child::Child;

/// What each VMM may take for one guest: far more than an emulated processor needs.
const LIMIT: Duration = Duration::from_secs(900);
/// How long a guest may take to power off.
const GRACE: Duration = Duration::from_secs(30);
const TAP: &str = "tap-report";

/// Takes all figures. `input` is the folder that the host has prepared; `copied` says that the files that the VMMs
/// open come from another host, so that reading them would count as theirs. The figures are written to `output` as
/// they come; what an earlier call has left there is not measured again.
///
/// # Errors
/// What is needed to measure at all is missing. A VMM that fails is part of the result.
pub fn run(options: &Options, input: &Path, output: &Path, copied: bool) -> Result<()> {
    let work = PathBuf::from(format!("/dev/shm/ossature-report-{}", std::process::id()));
    fs::create_dir_all(&work).context(work.display())?;
    let measured = Measure::new(options, input, &work, output, copied).and_then(|mut measure| measure.all());
    fs::remove_dir_all(&work).context(work.display())?;
    measured
}

/// What is measured, and the function that measures it for one VMM.
type Step<'a> = (&'static str, fn(&mut Measure<'a>, usize) -> Result<()>);

struct Measure<'a> {
    options: &'a Options,
    guest: Guest,
    contenders: Vec<Contender>,
    copied: bool,
    output: PathBuf,
    figures: Figures,
}

impl<'a> Measure<'a> {
    fn new(
        options: &'a Options,
        input: &Path,
        work: &Path,
        output: &Path,
        copied: bool,
    ) -> Result<Measure<'a>> {
        for name in ["kernel", "bzimage", "initrd", "microvm", "floor"] {
            let (from, to) = (input.join(name), work.join(name));
            fs::copy(&from, &to).context(from.display())?;
        }
        let disk = work.join("disk");
        fs::write(&disk, vec![0x55; options.disk_mib() << 20]).context(disk.display())?;
        kernel::mount();
        tap(TAP)?;
        let contenders = options.contenders(&work.join("microvm"), &work.join("floor"));
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
            let names = contenders.iter().map(|contender| Measured::new(&contender.name)).collect();
            Figures { contenders: names, ..Figures::default() }
        };
        if copied {
            figures.files.iter().for_each(|file| copy_up(Path::new(file)));
        }
        Ok(Measure { options, guest, contenders, copied, output: output.to_owned(), figures })
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
        let last: [Step<'a>; 1] = [("memory and exits", Self::idle)];
        self.round(1, &once)?;
        for run in 1..=self.options.runs() {
            self.round(run, &repeated)?;
        }
        self.round(1, &last)?;
        let program = |contender: &Contender| contender.words.first().cloned().unwrap_or_default();
        for (contender, measured) in self.contenders.iter().zip(&mut self.figures.contenders) {
            if let Some(size) = find_program(&program(contender)).and_then(|path| fs::metadata(path).ok()) {
                measured.add("binary", size.len() as f64);
            }
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
        self.guest.cmdline = format!("{} report={what}", self.options.cmdline);
        let config = self.guest.folder.join("config");
        fs::write(&config, self.guest.firecracker_config()).context(config.display())?;
        let contender = self.contenders.get(index).ok_or_else(|| Error::new("no such VMM"))?;
        Ok(contender.command(&self.guest))
    }

    /// Also reads once whatever the VMM reads.
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
        if self.copied {
            files.iter().for_each(|file| copy_up(Path::new(file)));
        }
        self.figures.files.extend(files);
        let calls = strace::before_first_run(&text)
            .ok_or_else(|| Error::new(format!("it never ran a guest\n{}", child.said())))?;
        self.add(index, "calls", calls.all.into());
        self.add(index, "ioctls", calls.ioctls.into());
        Ok(())
    }

    fn first_run(&mut self, index: usize) -> Result<()> {
        let words = self.command(index, "boot")?;
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
        let words = self.command(index, "boot")?;
        let mut child = Child::start(&words, LIMIT)?;
        let init = child.wait_for("@@init")?;
        self.add(index, "init", init.as_secs_f64());
        // A VMM without a way to power off does not end.
        if let Some(end) = child.wait_at_most(GRACE)? {
            self.add(index, "end", end.as_secs_f64());
        }
        Ok(())
    }

    /// The guest has loaded its drivers and sleeps.
    fn idle(&mut self, index: usize) -> Result<()> {
        if !self.takes_part(index, Part::Whole) {
            return Ok(());
        }
        let words = self.command(index, "idle")?;
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
        if index != 0 {
            return Ok(());
        }
        let mut words = self.command(index, "stamps")?;
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

/// Has the overlay file system fetch a file: it copies what is opened for writing.
fn copy_up(file: &Path) {
    // What cannot be written is not on the overlay, or is read each time.
    drop(fs::OpenOptions::new().append(true).open(file));
}

/// The file that a command's first word means.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let path = process::text(process::command("sh").args(["-c", "command -v -- \"$1\"", "sh", name])).ok()?;
    Some(PathBuf::from(path.trim()))
}

/// Numbers in `text` of the form `name=value`.
fn pairs(text: &str) -> BTreeMap<&str, f64> {
    let pair = |word: &str| -> Option<(usize, f64)> {
        let at = word.find('=')?;
        Some((at, word.get(at + 1..)?.parse().ok()?))
    };
    text.split_whitespace().filter_map(|word| pair(word).map(|(at, value)| (&word[..at], value))).collect()
}
