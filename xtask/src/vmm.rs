//! The example VMM that demo and whole-machine tests boot guests with.

use std::path::PathBuf;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::arch::Arch;
use crate::{Result, cross, paths, process};

/// How long a quiet build is quiet.
const QUIET: Duration = Duration::from_secs(30);

/// Where [`build`] leaves the VMM: the release build of the example `microvm`.
pub fn program() -> PathBuf {
    example("microvm")
}

/// Where [`build_for`] leaves it.
pub fn program_for(arch: Arch) -> PathBuf {
    paths::built_for(arch).join("examples/microvm")
}

/// Builds the VMM for an architecture: for another one than the host's without shared libraries, for an emulator.
///
/// # Errors
/// It does not compile, or there is no standard library for the architecture.
pub fn build_for(arch: Arch, quiet: bool) -> Result<()> {
    if arch.is_host() {
        return if quiet { build_quietly() } else { build() };
    }
    let words = ["--package", "ossature-examples", "--example", "microvm"];
    if quiet {
        return telling(|| cross::build(arch, &[&words[..], &["--quiet"]].concat()));
    }
    cross::build(arch, &words)
}

/// Builds the VMM.
///
/// # Errors
/// It does not compile.
pub fn build() -> Result<()> {
    build_example("microvm")
}

/// Builds the VMM, and says nothing but what is wrong, and that it is building where that takes long.
///
/// # Errors
/// It does not compile.
pub fn build_quietly() -> Result<()> {
    telling(|| process::run(cargo_build("microvm").arg("--quiet")))
}

/// Runs a quiet build, and says that it is building where that takes long.
fn telling(build: impl FnOnce() -> Result<()>) -> Result<()> {
    let (end, ended) = mpsc::channel::<()>();
    let teller = thread::spawn(move || {
        if ended.recv_timeout(QUIET) == Err(mpsc::RecvTimeoutError::Timeout) {
            eprintln!("xtask: building microvm, which takes some minutes the first time");
        }
    });
    let built = build();
    drop(end);
    // It has nothing to fail with.
    let _ = teller.join();
    built
}

/// Builds the VMM, the examples beside it that whole-machine tests run, and what `more` chooses: [`example`] tells where each is.
///
/// # Errors
/// They do not compile, or there is no standard library for the architecture.
pub fn build_for_tests(arch: Arch, more: &[&str]) -> Result<()> {
    let examples = ["microvm", "rust_vmm", "fork", "appliance"].map(|name| ["--example", name]);
    let words = [&examples.concat(), more].concat();
    if arch.is_host() {
        let mut cargo = process::command("cargo");
        return process::run(cargo.args(["build", "--release"]).args(words).current_dir(paths::root()));
    }
    // Of the whole workspace, as its tests: what they have in common is compiled once.
    cross::build(arch, &[&["--workspace"], &words[..]].concat())
}

/// Where [`build_for_tests`] leaves one.
pub fn example(name: &str) -> PathBuf {
    paths::built_for(Arch::HOST).join("examples").join(name)
}

/// Builds the least that reaches a kernel's first instruction, and tells where it is.
///
/// # Errors
/// It does not compile.
pub fn build_floor() -> Result<PathBuf> {
    build_example("floor_boot")?;
    Ok(example("floor_boot"))
}

fn build_example(name: &str) -> Result<()> {
    process::run(&mut cargo_build(name))
}

fn cargo_build(name: &str) -> Command {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--release", "--example", name]).current_dir(paths::root());
    cargo
}
