//! Guests without an operating system, for whole-machine tests: packages outside of the workspace, because they are
//! programs of the guest with a profile and a linker script of their own.

use std::path::PathBuf;

use crate::{Result, paths, process};

/// Where [`build`] leaves the guest that drives virtio devices with the `virtio-drivers` crate: an ELF kernel with a
/// PVH entry point.
pub fn virtio_drivers() -> PathBuf {
    paths::target().join("guests/release/virtio-drivers-guest")
}

/// The manifest of its package.
pub fn manifest() -> PathBuf {
    paths::root().join("tests/guests/virtio-drivers/Cargo.toml")
}

/// Builds it.
///
/// # Errors
/// It does not compile.
pub fn build() -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--locked", "--release", "--manifest-path"]).arg(manifest());
    cargo.arg("--target-dir").arg(paths::target().join("guests"));
    process::run(cargo.current_dir(paths::root()))
}
