//! Builds for another architecture, with a standard library for it from rustup or from Debian.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use crate::arch::Arch;
use crate::port::Port;
use crate::{Error, Result, packages, paths, process};

/// Debian 12's current compiler: the package `rustc` of that release is older than ours has to be.
const COMPILER: &str = "rustc-web";
const COMPILER_PROGRAM: &str = "/usr/bin/rustc";
const DOCUMENTER_PROGRAM: &str = "/usr/bin/rustdoc";
/// The standard library that belongs to it.
const LIBRARY: &str = "libstd-rust-web-dev";

/// The compiler's flag for programs without shared libraries.
const STATIC: &str = "-Ctarget-feature=+crt-static";
/// The profile of what an emulator runs.
pub const PROFILE: &str = "emulated";

/// What links programs for aarch64.
pub const LINKER: &[&str] = &["aarch64-linux-gnu-gcc", "libc.a for arm64"];

/// Builds programs without shared libraries for an emulator.
///
/// # Errors
/// They do not compile, or there is no standard library for the architecture.
pub fn build(arch: Arch, words: &[&str]) -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.arg("build").args(words).current_dir(paths::root());
    set_up_programs(&mut cargo, arch, "")?;
    process::run(&mut cargo)
}

/// Builds an example of a package without shared libraries as users build theirs, optimized as a whole, and tells where it is.
///
/// # Errors
/// As of [`build`].
pub fn build_optimized(arch: Arch, package: &str, example: &str) -> Result<PathBuf> {
    let mut cargo = process::command("cargo");
    cargo.args(["build", "--release", "--package", package, "--example", example]);
    set_up(cargo.current_dir(paths::root()), arch, STATIC)?;
    process::run(&mut cargo)?;
    Ok(paths::target().join(arch.facts().target).join("release/examples").join(example))
}

/// Has `cargo` build programs without shared libraries for an emulator, with these more flags for the compiler.
///
/// # Errors
/// There is no standard library for the architecture that the compiler takes.
pub fn set_up_programs(cargo: &mut Command, arch: Arch, flags: &str) -> Result<()> {
    set_up(cargo.args(["--profile", PROFILE]), arch, &format!("{STATIC} {flags}"))
}

/// Has `cargo` build for an architecture, with these more flags for the compiler and for rustdoc.
///
/// # Errors
/// There is no standard library for it that the compiler takes.
pub fn set_up(cargo: &mut Command, arch: Arch, flags: &str) -> Result<()> {
    let target = arch.facts().target;
    let mut flags = flags.to_owned();
    if !has_target(target) && !rustup_adds_target(target) {
        cargo.env("RUSTC", COMPILER_PROGRAM).env("RUSTDOC", DOCUMENTER_PROGRAM);
        flags = format!("{flags} --sysroot {}", debian_sysroot(arch)?.display());
    }
    let variable = |name: &str| format!("CARGO_TARGET_{}_{name}", target.to_uppercase().replace('-', "_"));
    cargo.args(["--target", target]).env_remove("RUSTFLAGS").env_remove("RUSTDOCFLAGS");
    cargo.env(variable("RUSTFLAGS"), &flags).env(variable("RUSTDOCFLAGS"), &flags);
    if arch == Arch::Aarch64 && !arch.is_host() {
        cargo.env(variable("LINKER"), "aarch64-linux-gnu-gcc");
    }
    Ok(())
}

/// The toolchain in use has a standard library for the target.
fn has_target(target: &str) -> bool {
    let mut rustc = process::command("rustc");
    rustc.args(["--print", "target-libdir", "--target", target]).current_dir(paths::root());
    let folder = process::text(&mut rustc).unwrap_or_default();
    fs::read_dir(folder.trim()).is_ok_and(|mut files| files.next().is_some())
}

/// Adds the target where rustup manages the toolchain.
fn rustup_adds_target(target: &str) -> bool {
    let mut rustup = process::command("rustup");
    if process::output(rustup.arg("--version")).is_err() {
        return false;
    }
    eprintln!("  adding {target} to the toolchain (rustup target add {target})");
    let mut rustup = process::command("rustup");
    match process::output(rustup.args(["target", "add", target]).current_dir(paths::root())) {
        Ok(_) => true,
        Err(error) => {
            eprintln!("  {error}");
            false
        }
    }
}

/// A sysroot for Debian's compiler that holds the target's standard library, which Debian has as a package of its
/// port: downloaded and unpacked in the target folder, not installed.
fn debian_sysroot(arch: Arch) -> Result<PathBuf> {
    if !packages::is_debian() {
        let target = arch.facts().target;
        return Err(Error::needs_developer(format!("please run: rustup target add {target}")));
    }
    let folder = paths::target().join("port").join(arch.facts().debian).join("std");
    let sysroot = |version: &str| folder.join(version).join("usr");
    if let Some(sysroot) = installed().map(|version| sysroot(&version)).filter(|sysroot| sysroot.exists()) {
        return Ok(sysroot);
    }
    let port = Port::update(arch)?;
    let version = port.version(LIBRARY)?;
    if installed().as_ref() != Some(&version) {
        if process::is_root() {
            packages::update_lists()?;
        }
        // It would take the place of an older `rustc`: that is for the developer to decide.
        packages::install(&[COMPILER], "--no-remove")?;
    }
    match installed() {
        Some(found) if found == version => {}
        found => {
            let found = found.unwrap_or_else(|| "none".to_owned());
            let message = format!("{COMPILER} {version} is needed for {LIBRARY}; installed is {found}");
            return Err(Error::new(message));
        }
    }
    port.unpack(LIBRARY, &version, &folder.join(&version))?;
    Ok(sysroot(&version))
}

/// The version of the compiler's package, if it is installed.
fn installed() -> Option<String> {
    let mut dpkg = process::command("dpkg-query");
    dpkg.args(["--show", "--showformat", "${db:Status-Status} ${Version}", COMPILER]);
    process::text(&mut dpkg).ok()?.strip_prefix("installed ").map(str::to_owned)
}
