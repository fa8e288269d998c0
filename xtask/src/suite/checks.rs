//! Checks of the whole source: formatting, lints, documentation, dependencies, the report.

use super::{consumer, examples, links, lock_file};
use crate::{Result, bare_metal, fuzz, paths, process, report};

/// A check: its name and what it runs.
pub type Check = (&'static str, fn() -> Result<()>);

/// All checks that come before the tests.
pub const BEFORE: &[Check] =
    &[("rustfmt", rustfmt), ("clippy", clippy), ("doc", doc), ("deny", deny), ("examples", examples::check)];

/// The check that a quick report has a figure in each row.
pub const REPORT: Check = ("report", report::check);

fn cargo(arguments: &[&str]) -> std::process::Command {
    let mut cargo = process::command("cargo");
    cargo.args(arguments).current_dir(paths::root());
    cargo
}

fn rustfmt() -> Result<()> {
    component("rustfmt")?;
    process::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    for outside in [bare_metal::manifest(), consumer::manifest(), fuzz::manifest()] {
        process::run(cargo(&["fmt", "--check", "--manifest-path"]).arg(outside))?;
    }
    Ok(())
}

fn clippy() -> Result<()> {
    component("clippy")?;
    process::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
}

fn doc() -> Result<()> {
    let mut doc = cargo(&["doc", "--workspace", "--all-features", "--no-deps", "--quiet"]);
    process::run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    links::markdown()?;
    links::documentation()
}

/// One version of each rust-vmm crate, and what `deny.toml` asks for if cargo-deny is installed.
fn deny() -> Result<()> {
    lock_file::one_version_each(&paths::root().join("Cargo.lock"))?;
    if process::output(&mut cargo(&["deny", "--version"])).is_err() {
        println!("  cargo-deny is not installed: licences and sources were not checked");
        return Ok(());
    }
    // Advisories change without a change of ours, and need the network.
    process::output(&mut cargo(&["deny", "check", "bans", "licenses", "sources"])).map(drop)
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
