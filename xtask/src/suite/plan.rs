//! A list of tests to run in one place: a process for each test, each with a time limit.
//!
//! The list and the results are files, because the place may be another mount namespace or the
//! nested machine: there, this same program runs again, as `xtask run-plan`.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use super::binaries::Test;
use super::joined;
use super::libtest::{self, Counts};
use crate::{Context, Error, Result};

/// The limit from which on a test is named when it starts too.
const SLOW: Duration = Duration::from_secs(900);

/// Cases of each property, which are 256 where nothing is emulated.
const EMULATED_CASES: &str = "16";

/// What there is in a folder of claims from the start.
pub const MARK: &str = "mark";

/// One line of a plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    limit: Duration,
    file: PathBuf,
    folder: PathBuf,
    part: Part,
    binary: String,
    name: String,
}

/// What of a binary is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// A benchmark, once.
    Bench,
    /// The test of the entry's name.
    Test,
    /// So many tests, those of the entry's name, with spaces between them.
    Several(usize),
}

impl Part {
    fn to_word(self) -> String {
        match self {
            Self::Bench => "bench".to_owned(),
            Self::Test => "test".to_owned(),
            Self::Several(count) => count.to_string(),
        }
    }

    fn from_word(word: &str) -> Option<Self> {
        match word {
            "bench" => Some(Self::Bench),
            "test" => Some(Self::Test),
            count => Some(Self::Several(count.parse().ok()?)),
        }
    }
}

impl Entry {
    /// A test that may take `limit`.
    pub fn new(test: &Test, limit: Duration) -> Entry {
        Entry {
            limit,
            file: test.binary.file.clone(),
            folder: test.binary.folder.clone(),
            part: if test.binary.is_bench { Part::Bench } else { Part::Test },
            binary: test.binary.id.clone(),
            name: test.name.clone(),
        }
    }

    /// Tests of one binary in one process, which may take `limit`. `None` for no test.
    pub fn several(tests: &[&Test], limit: Duration) -> Option<Entry> {
        let names: Vec<&str> = tests.iter().map(|test| test.name.as_str()).collect();
        Some(Entry {
            part: Part::Several(tests.len()),
            name: names.join(" "),
            ..Entry::new(tests.first()?, limit)
        })
    }

    /// What it is called when it starts and ends.
    fn shown(&self) -> String {
        match self.part {
            Part::Bench | Part::Test => format!("{} {}", self.binary, self.name),
            Part::Several(count) => format!("{}, {count} tests", self.binary),
        }
    }

    fn to_line(&self) -> String {
        let Entry { limit, file, folder, part, binary, name } = self;
        let (limit, file, folder) = (limit.as_secs(), file.display(), folder.display());
        format!("{limit}\t{file}\t{folder}\t{}\t{binary}\t{name}\n", part.to_word())
    }

    fn from_line(line: &str) -> Option<Entry> {
        let mut fields = line.split('\t');
        let entry = Entry {
            limit: Duration::from_secs(fields.next()?.parse().ok()?),
            file: fields.next()?.into(),
            folder: fields.next()?.into(),
            part: Part::from_word(fields.next()?)?,
            binary: fields.next()?.to_owned(),
            name: fields.next()?.to_owned(),
        };
        fields.next().is_none().then_some(entry)
    }

    /// Runs the test, by an emulator if one is given; what it prints goes to `log`.
    ///
    /// # Errors
    /// It does not pass.
    pub fn run(&self, emulator: Option<&str>, log: &Path) -> Result<()> {
        let file = File::create(log).context(log.display())?;
        // Tests send signals, and this command may have been started with some ignored, as by nohup(1).
        let mut command = Command::new("env");
        command.arg("--default-signal").args(emulator).arg(&self.file);
        match self.part {
            Part::Bench => _ = command.arg("--test"),
            Part::Test => _ = command.args(["--exact", &self.name]),
            Part::Several(_) => _ = command.arg("--exact").args(self.name.split(' ')),
        }
        if emulator.is_some() {
            command.env("PROPTEST_CASES", EMULATED_CASES);
            // A program that is started from one of several threads of an emulator may wait forever for what another held.
            command.arg("--test-threads=1");
        }
        command.current_dir(&self.folder).env("CARGO_MANIFEST_DIR", &self.folder).stdin(Stdio::null());
        command.stdout(file.try_clone().context(log.display())?).stderr(file);
        let mut child = command.spawn().context(self.file.display())?;
        let start = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait().context(self.file.display())? {
                break status;
            }
            if start.elapsed() > self.limit {
                child.kill().and_then(|()| child.wait()).context(self.file.display())?;
                return Err(Error::new(format!("still running after {} s", self.limit.as_secs())));
            }
            thread::sleep(Duration::from_millis(if start.elapsed().as_millis() < 100 { 1 } else { 10 }));
        };
        if !status.success() {
            return Err(Error::new(status.to_string()));
        }
        let count = match self.part {
            Part::Bench => return Ok(()),
            Part::Test => 1,
            Part::Several(count) => count,
        };
        let said = fs::read(log).context(log.display())?;
        match libtest::last_counts(&String::from_utf8_lossy(&said)) {
            Counts { passed, failed: 0, ignored: 0 } if passed == count => Ok(()),
            other => Err(Error::new(format!("exit code 0, but the summary says {other:?}"))),
        }
    }
}

/// Writes a plan for [`run`].
///
/// # Errors
/// The file cannot be written.
pub fn write(path: &Path, entries: &[Entry]) -> Result<()> {
    let text: String = entries.iter().map(Entry::to_line).collect();
    fs::write(path, text).context(path.display())
}

/// Runs a plan with so many tests at a time, prints how it gets on, and appends a line to `results`
/// for each test that has ended. Where several places share a plan, each takes what no other one has taken before: `claims` is
/// a folder that they have in common.
///
/// # Errors
/// The files cannot be read or written. A test that fails is a result, not an error.
pub fn run(plan: &Path, results: &Path, at_a_time: usize, claims: Option<&Path>) -> Result<()> {
    let text = fs::read_to_string(plan).context(plan.display())?;
    let entries: Option<Vec<Entry>> = text.lines().map(Entry::from_line).collect();
    let entries = entries.ok_or_else(|| Error::new(format!("{}: not a plan", plan.display())))?;
    if let Some(claims) = claims {
        // It is the folder that they have in common, and not one of this place alone.
        fs::metadata(claims.join(MARK)).context(claims.display())?;
    }
    let output = Mutex::new(File::create(results).context(results.display())?);
    let next = AtomicUsize::new(0);
    let worker = |number: usize| -> Result<()> {
        let log = results.with_extension(format!("log{number}"));
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            let Some(entry) = entries.get(index) else { return Ok(()) };
            if !claims.map_or(Ok(true), |claims| claim(claims, index))? {
                continue;
            }
            let (place, total) = (index + 1, entries.len());
            if entry.limit >= SLOW {
                println!("  [{place}/{total}] starts  {}", entry.shown());
            }
            let start = Instant::now();
            let outcome = entry.run(None, &log);
            let seconds = start.elapsed().as_secs_f32();
            let mut output = output.lock().map_err(|_| Error::new("another worker panicked"))?;
            let word = if outcome.is_ok() { "ok" } else { "FAILED" };
            if outcome.is_err() || seconds > 1.0 {
                println!("  [{place}/{total}] {word} {seconds:.1} s  {}", entry.shown());
            }
            if let Err(error) = outcome {
                let said = fs::read(&log).unwrap_or_default();
                println!("  {error}\n{}\n", String::from_utf8_lossy(&said).trim_end());
            }
            writeln!(output, "{index} {word}").context(results.display())?;
        }
    };
    let outcomes: Vec<Result<()>> = thread::scope(|scope| {
        let workers: Vec<_> =
            (0..at_a_time.max(1)).map(|number| scope.spawn(move || worker(number))).collect();
        workers.into_iter().map(|worker| joined(worker, "a worker")).collect()
    });
    outcomes.into_iter().collect()
}

/// Returns false if another place has the test already.
fn claim(claims: &Path, index: usize) -> Result<bool> {
    match fs::create_dir(claims.join(index.to_string())) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        result => result.context(claims.display()).map(|()| true),
    }
}

/// What became of each of `count` tests: none for those that never ended.
pub fn read_results(results: &Path, count: usize) -> Vec<Option<bool>> {
    let mut outcomes = vec![None; count];
    for line in fs::read_to_string(results).unwrap_or_default().lines() {
        if let Some((index, word)) = line.split_once(' ') {
            if let Some(outcome) = index.parse().ok().and_then(|index: usize| outcomes.get_mut(index)) {
                *outcome = Some(word == "ok");
            }
        }
    }
    outcomes
}

#[cfg(test)]
mod tests;
