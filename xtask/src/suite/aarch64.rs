//! The check that the workspace compiles for aarch64.

use crate::arch::Arch;
use crate::{Result, cross, paths, process};

/// The packages whose tests and examples compile for it too. Those of core and of the facade run bare x86 guests.
const WITH_TESTS: &[&str] = &[
    "ossature-memory",
    "ossature-bus",
    "ossature-legacy",
    "ossature-pci",
    "ossature-block",
    "ossature-virtio",
    "ossature-boot",
    "xtask",
];

/// Checks the libraries and programs of the whole workspace, its example VMM, and the tests that are not x86's. Has a
/// target folder of its own, so that the other steps find theirs as they left it.
pub fn check() -> Result<()> {
    let check = |what: &[&str]| {
        let mut cargo = process::command("cargo");
        cargo.args(["check", "--target-dir"]).arg(paths::target().join("aarch64")).args(what);
        cross::set_up(&mut cargo, Arch::Aarch64, "-D warnings")?;
        process::run(cargo.current_dir(paths::root()))
    };
    check(&["--workspace"])?;
    check(&["--package", "ossature-examples", "--example", "microvm"])?;
    let tests = WITH_TESTS.iter().flat_map(|package| ["--package", package]);
    check(&tests.chain(["--all-targets"]).collect::<Vec<_>>())
}
