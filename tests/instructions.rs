//! The instructions of each hot path, held against a bound.
//!
//! A count does not depend on what else the machine does, so it can be compared across machines and over time. It
//! depends a little on the compiler: hence the tolerance. Where a change makes a path cheaper, lower its bound.

#[cfg_attr(target_arch = "x86_64", path = "instructions/x86_64.rs")]
#[cfg_attr(target_arch = "aarch64", path = "instructions/aarch64.rs")]
mod arch;

use std::path::PathBuf;
use std::process::Command;

use arch::{BOUNDS, count};

/// A count may exceed its bound by this factor.
const TOLERANCE: f64 = 1.05;

/// The folder that cargo builds into.
fn target() -> PathBuf {
    let here = std::env::current_exe().unwrap();
    here.ancestors().nth(3).unwrap().to_owned()
}

/// The program, built as users build theirs, optimized, whole-program: here, or before by who says where.
fn program() -> PathBuf {
    if let Some(program) = std::env::var_os("INSTRUCTIONS_PROGRAM") {
        return program.into();
    }
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).arg("build").args([
        "--release",
        "--example",
        "instructions",
    ]);
    let built = cargo.arg("--target-dir").arg(target()).status().unwrap();
    assert!(built.success(), "the program does not build");
    target().join("release/examples/instructions")
}

#[test]
fn no_hot_path_takes_more_instructions_than_recorded() {
    let counts = count(&program());
    let mut wrong = Vec::new();
    for &(name, bound) in BOUNDS {
        let found = counts.get(name).copied().unwrap_or_else(|| panic!("no path is called {name:?}"));
        println!("{found:10.1} (recorded {bound:10.1}) {name}");
        if found > bound * TOLERANCE {
            wrong.push(format!("{name}: {found:.1} instructions, recorded {bound:.1}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let unbounded: Vec<_> =
        counts.keys().filter(|name| BOUNDS.iter().all(|(other, _)| other != name)).collect();
    assert!(unbounded.is_empty(), "no bound is recorded for {unbounded:?}");
}
