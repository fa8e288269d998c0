//! Tests in user emulation: QEMU translates a program of another architecture, and this host's kernel answers its system calls,
//! as far as the emulator knows them. Much faster than a nested machine.

use std::collections::HashSet;
use std::thread;

use super::binaries::Test;
use super::libtest;
use crate::{Context, Result, process};

/// Seconds that the tests of a binary may take: one that waits for ever for what the emulator does not do ends them all.
const LIMIT: &str = "300";

/// Runs tests of one binary in one process, and returns those that have passed.
///
/// # Errors
/// There is no emulator.
pub fn passed<'a>(tests: &[&'a Test]) -> Result<Vec<&'a Test>> {
    let Some(binary) = tests.first().map(|test| &test.binary) else { return Ok(Vec::new()) };
    let threads = thread::available_parallelism().map_or(2, usize::from);
    let mut emulator = process::command("timeout");
    emulator.args(["--kill-after=5", LIMIT, binary.arch.facts().emulator]).arg(&binary.file);
    emulator.arg("--exact").args(tests.iter().map(|test| &test.name));
    emulator.arg(format!("--test-threads={threads}"));
    emulator.current_dir(&binary.folder).env("CARGO_MANIFEST_DIR", &binary.folder);
    let output = emulator.output().context(binary.file.display())?;
    let said = String::from_utf8_lossy(&output.stdout);
    let names: HashSet<&str> = libtest::passed(&said).collect();
    Ok(tests.iter().copied().filter(|test| names.contains(test.name.as_str())).collect())
}
