//! Checks of the whole source: formatting, lints, documentation, dependencies, packages, the report.

use std::collections::BTreeMap;
use std::fs;

use crate::{Context, Error, Result, paths, process, report};

/// Crates of the rust-vmm project: two versions of one of them in a program do not fit together.
const RUST_VMM: &[&str] = &[
    "acpi_tables",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "vfio-bindings",
    "vfio-ioctls",
    "vhost",
    "vhost-user-backend",
    "virtio-bindings",
    "virtio-queue",
    "virtio-vsock",
    "vm-allocator",
    "vm-device",
    "vm-fdt",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// A check: its name and what it runs.
pub type Check = (&'static str, fn() -> Result<()>);

/// All checks that come before the tests.
pub const BEFORE: &[Check] = &[("rustfmt", rustfmt), ("clippy", clippy), ("doc", doc), ("deny", deny)];

/// The check that every crate can be packaged.
pub const PACKAGE: Check = ("package", package);

/// The check that a quick report has a figure in each row.
pub const REPORT: Check = ("report", report::check);

fn cargo(arguments: &[&str]) -> std::process::Command {
    let mut cargo = process::command("cargo");
    cargo.args(arguments).current_dir(paths::root());
    cargo
}

fn rustfmt() -> Result<()> {
    component("rustfmt")?;
    process::run(&mut cargo(&["fmt", "--all", "--check"]))
}

fn clippy() -> Result<()> {
    component("clippy")?;
    process::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
}

fn doc() -> Result<()> {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--quiet"]);
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
}

/// One version of each rust-vmm crate, and what `deny.toml` asks for if cargo-deny is installed.
fn deny() -> Result<()> {
    let lock = paths::root().join("Cargo.lock");
    let duplicates = duplicates(&fs::read_to_string(&lock).context(lock.display())?);
    if !duplicates.is_empty() {
        return Err(Error::new(format!("more than one version of: {}", duplicates.join(", "))));
    }
    if process::output(&mut cargo(&["deny", "--version"])).is_err() {
        println!("  cargo-deny is not installed: licences and sources were not checked");
        return Ok(());
    }
    // Advisories change without a change of ours, and need the network.
    process::output(&mut cargo(&["deny", "check", "bans", "licenses", "sources"])).map(drop)
}

fn package() -> Result<()> {
    let exclude = ["--workspace", "--exclude", "xtask"];
    process::output(cargo(&["package", "--no-verify", "--allow-dirty", "--quiet"]).args(exclude)).map(drop)
}

/// Adds a component to the toolchain where rustup manages it.
fn component(name: &str) -> Result<()> {
    let program = format!("cargo-{}", name.trim_start_matches("rust"));
    if process::output(process::command(program).arg("--version")).is_ok() {
        return Ok(());
    }
    println!("  adding {name} to the toolchain (rustup component add {name})");
    process::run(process::command("rustup").args(["component", "add", name]).current_dir(paths::root()))
}

/// The rust-vmm crates that a lock file holds more than once, with their versions.
fn duplicates(lock: &str) -> Vec<String> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut name = "";
    for line in lock.lines() {
        if let Some(value) = quoted(line, "name = ") {
            name = value;
        } else if let Some(value) = quoted(line, "version = ") {
            versions.entry(name).or_default().push(value);
        }
    }
    versions
        .into_iter()
        .filter(|(name, versions)| versions.len() > 1 && RUST_VMM.contains(name))
        .map(|(name, versions)| format!("{name} ({})", versions.join(", ")))
        .collect()
}

fn quoted<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.strip_prefix(key)?.trim().strip_prefix('"')?.strip_suffix('"')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_version_is_found_and_other_crates_may_have_two() {
        let package = |name, version| format!("[[package]]\nname = \"{name}\"\nversion = \"{version}\"\n\n");
        let lock =
            ["version = 4\n\n".to_owned(), package("vm-memory", "0.17.1"), package("syn", "1.0.0")].concat();
        assert_eq!(duplicates(&lock), Vec::<String>::new());
        let lock = [lock, package("vm-memory", "0.18.0"), package("syn", "2.0.0")].concat();
        assert_eq!(duplicates(&lock), ["vm-memory (0.17.1, 0.18.0)"]);
    }
}
