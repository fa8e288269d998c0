//! The example VMM that demo and whole-machine tests boot guests with.

use std::path::PathBuf;

use crate::{Result, paths, process};

/// Where [`build`] leaves the VMM: the release build of the example `microvm`.
pub fn program() -> PathBuf {
    paths::target().join("release/examples/microvm")
}

/// Builds the VMM.
///
/// # Errors
/// It does not compile.
pub fn build() -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--release", "--example", "microvm"]).current_dir(paths::root());
    process::run(&mut cargo)
}
