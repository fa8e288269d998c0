//! Tests in user emulation: QEMU translates a program of another architecture, and this host's kernel answers its system calls,
//! as far as the emulator knows them. Much faster than a nested machine.

use std::collections::HashSet;
use std::fs;
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use super::binaries::{Binary, Test};
use super::plan::Entry;
use super::{joined, libtest};
use crate::{Context, Result, paths};

/// How long the tests of a binary may take.
const LIMIT: Duration = Duration::from_secs(600);

/// Runs tests, those of each binary in one process and as many binaries at a time as there are processors, and returns those
/// that have passed. Says which have not.
///
/// # Errors
/// All of a process have passed, but not the process.
pub fn passed<'a>(tests: &[&'a Test]) -> Result<Vec<&'a Test>> {
    let parts: Vec<&[&'a Test]> = tests.chunk_by(|one, other| one.binary.file == other.binary.file).collect();
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut passed = Vec::new();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            passed.extend(of_binary(part)?);
        }
        Ok(passed)
    };
    let processors = thread::available_parallelism().map_or(1, NonZero::get);
    let passed: Result<Vec<Vec<&Test>>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| joined(worker, "a worker")).collect()
    });
    Ok(passed?.concat())
}

fn of_binary<'a>(tests: &[&'a Test]) -> Result<Vec<&'a Test>> {
    let Some(Test { binary, .. }) = tests.first() else { return Ok(Vec::new()) };
    let (mut passed, mut others) = (Vec::new(), tests.to_vec());
    let mut said = String::new();
    // An emulator that did not get to its end has one more attempt, at what is left.
    for _ in 0..2 {
        let Some(entry) = Entry::several(&others, LIMIT) else { break };
        let (outcome, log) = run(&entry, binary)?;
        let names: HashSet<&str> = libtest::passed(&log).collect();
        let (those, left) = others.into_iter().partition(|test| names.contains(test.name.as_str()));
        passed = [passed, those].concat();
        others = left;
        let ended = libtest::has_summary(&log);
        match outcome {
            Ok(()) => break,
            Err(error) if others.is_empty() => return Err(error),
            Err(error) if ended => said = format!("  not there ({error}):\n"),
            Err(error) => println!("  {}: {error}, at {:?}", binary.id, log.lines().last()),
        }
        if ended {
            break;
        }
    }
    said.extend(others.iter().map(|test| format!("    {}\n", test.name)));
    print!("  {}: {} of {} in user emulation\n{said}", binary.id, passed.len(), tests.len());
    Ok(passed)
}

/// Runs a process, and returns what it printed too.
fn run(entry: &Entry, binary: &Binary) -> Result<(Result<()>, String)> {
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).context(folder.display())?;
    let name = binary.file.file_name().unwrap_or_default().to_string_lossy();
    let log = folder.join(format!("{}.{name}.emulation", std::process::id()));
    let outcome = entry.run(Some(binary.arch.facts().emulator), &log);
    let said = fs::read(&log).context(log.display())?;
    fs::remove_file(&log).context(log.display())?;
    Ok((outcome, String::from_utf8_lossy(&said).into_owned()))
}
