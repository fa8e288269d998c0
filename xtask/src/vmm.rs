//! The example VMM that demo and whole-machine tests boot guests with.

use std::path::PathBuf;
use std::process::Command;

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
    build_example("microvm")
}

/// Builds the VMM, and says nothing but what is wrong.
///
/// # Errors
/// It does not compile.
pub fn build_quietly() -> Result<()> {
    process::run(cargo_build("microvm").arg("--quiet"))
}

/// Builds the example VMM of rust-vmm's parts, and tells where it is.
///
/// # Errors
/// It does not compile.
pub fn build_rust_vmm() -> Result<PathBuf> {
    build_example("rust_vmm")?;
    Ok(rust_vmm())
}

/// Where [`build_rust_vmm`] leaves the VMM.
pub fn rust_vmm() -> PathBuf {
    paths::target().join("release/examples/rust_vmm")
}

/// Builds the least that reaches a kernel's first instruction, and tells where it is.
///
/// # Errors
/// It does not compile.
pub fn build_floor() -> Result<PathBuf> {
    build_example("floor_boot")?;
    Ok(paths::target().join("release/examples/floor_boot"))
}

fn build_example(name: &str) -> Result<()> {
    process::run(&mut cargo_build(name))
}

fn cargo_build(name: &str) -> Command {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--release", "--example", name]).current_dir(paths::root());
    cargo
}
