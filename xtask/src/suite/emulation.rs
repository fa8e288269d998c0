//! Tests in user emulation: QEMU translates a program of another architecture, and this host's kernel answers its system calls,
//! as far as the emulator knows them. Much faster than a nested machine.

use std::collections::HashSet;
use std::fs;
use std::time::Duration;

use super::binaries::Test;
use super::libtest;
use super::plan::Entry;
use crate::{Context, Result, paths};

/// How long the tests of a binary may take.
const LIMIT: Duration = Duration::from_secs(1200);

/// Runs tests of one binary in one process, and returns those that have passed. Says which have not.
///
/// # Errors
/// All have passed, but not the process.
pub fn passed<'a>(tests: &[&'a Test]) -> Result<Vec<&'a Test>> {
    let (Some(entry), Some(binary)) = (Entry::several(tests, LIMIT), tests.first().map(|test| &test.binary))
    else {
        return Ok(Vec::new());
    };
    let folder = paths::target().join("xtask-tests");
    fs::create_dir_all(&folder).context(folder.display())?;
    let log = folder.join(format!("{}.emulation", std::process::id()));
    let outcome = entry.run(Some(binary.arch.facts().emulator), &log);
    let said = fs::read(&log).context(log.display())?;
    fs::remove_file(&log).context(log.display())?;
    let said = String::from_utf8_lossy(&said);
    let names: HashSet<&str> = libtest::passed(&said).collect();
    let (passed, others): (Vec<&Test>, Vec<&Test>) =
        tests.iter().partition(|test| names.contains(test.name.as_str()));
    println!("  {}: {} of {} in user emulation", binary.id, passed.len(), tests.len());
    if let Err(error) = outcome {
        if others.is_empty() {
            return Err(error);
        }
        println!("  not there ({error}):");
        others.iter().for_each(|test| println!("    {}", test.name));
    }
    Ok(passed)
}
