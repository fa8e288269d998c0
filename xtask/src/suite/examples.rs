//! The examples compile as a user builds them, and from nothing that is for tests or benches.

use std::collections::BTreeSet;
use std::process::Stdio;

use serde_json::Value;

use super::binaries::package_name;
use crate::{Error, Result, paths, process};

/// What tests and benches of the workspace need, and nobody else.
const NOT_OURS: &[&str] = &["criterion", "loom", "proptest", "tempfile", "xtask"];

/// Checks `microvm` from the root, where the README builds it, and looks at what cargo has compiled for it.
///
/// # Errors
/// It does not compile, or takes a crate of the tests or benches.
pub fn check() -> Result<()> {
    let mut cargo = process::command("cargo");
    cargo.args(["check", "--example", "microvm", "--message-format=json-render-diagnostics"]);
    cargo.current_dir(paths::root()).stderr(Stdio::inherit());
    let messages = process::text(&mut cargo).map_err(|_| Error::new("the example does not compile"))?;
    let crates: BTreeSet<String> = messages.lines().filter_map(compiled).collect();
    if !crates.contains("ossature-examples") {
        return Err(Error::new("cargo does not say what it has compiled"));
    }
    println!("  microvm consists of {} crates", crates.len());
    let wrong: Vec<&str> = NOT_OURS.iter().copied().filter(|name| crates.contains(*name)).collect();
    if wrong.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("cargo check --example microvm compiles {}", wrong.join(", "))))
}

/// The package that a line of cargo's messages says is compiled.
fn compiled(line: &str) -> Option<String> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" {
        return None;
    }
    message["package_id"].as_str().map(|id| package_name(id).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn x4_what_cargo_has_compiled_is_found_in_its_messages() {
        let line = |id: &str| format!(r#"{{"reason":"compiler-artifact","package_id":"{id}","fresh":true}}"#);
        let index = "registry+https://github.com/rust-lang/crates.io-index";
        assert_eq!(compiled(&line(&format!("{index}#proptest@1.9.0"))).unwrap(), "proptest");
        assert_eq!(compiled(&line("path+file:///w/xtask#0.1.0")).unwrap(), "xtask");
        assert_eq!(compiled(r#"{"reason":"build-finished","success":true}"#), None);
    }
}
