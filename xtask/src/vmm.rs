//! The example VMM that demo and whole-machine tests boot guests with.

use std::path::PathBuf;

use crate::{Result, paths, process};

/// Where [`build`] leaves the VMM: the release build of the example `microvm`.
pub fn program() -> PathBuf {
    paths::target().join("release/examples/microvm")
}

/// Builds the VMM. Says how it gets on, if that is wanted, and in any case what is wrong.
///
/// # Errors
/// It does not compile.
pub fn build(says_progress: bool) -> Result<()> {
    build_example("microvm", says_progress)
}

/// Builds the least that reaches a kernel's first instruction, and tells where it is.
///
/// # Errors
/// It does not compile.
pub fn build_floor() -> Result<PathBuf> {
    build_example("floor_boot", true)?;
    Ok(paths::target().join("release/examples/floor_boot"))
}

fn build_example(name: &str, says_progress: bool) -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--release", "--example", name]).current_dir(paths::root());
    if !says_progress {
        cargo.arg("--quiet");
    }
    process::run(&mut cargo)
}
