//! The test binaries of the workspace and the tests in them.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::Value;

use super::libtest;
use crate::arch::Arch;
use crate::{Error, Result, cross, paths, process};

/// The package whose integration tests and benches start examples.
const FACADE: &str = "ossature";

/// A program made of tests or benchmarks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binary {
    /// What it is built for.
    pub arch: Arch,
    /// Package and target, as cargo names them: `ossature-bus`, `ossature::guest_boot`.
    pub id: String,
    /// The target's own name.
    pub target: String,
    /// The executable.
    pub file: PathBuf,
    /// The package's folder, in which cargo runs tests.
    pub folder: PathBuf,
    /// It measures: run once from start to end, as a test that it works.
    pub is_bench: bool,
    /// Its tests may start examples: it is an integration test or a bench of the package that builds them.
    pub starts_examples: bool,
}

impl Binary {
    /// The package that it is of.
    pub fn package(&self) -> &str {
        self.id.split("::").next().unwrap_or_default()
    }
}

/// One test of a binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// The binary's identity.
    pub binary: Binary,
    /// The test's path in the binary; for a benchmark, which counts as one, the target's name.
    pub name: String,
    /// Marked `#[ignore]`.
    pub ignored: bool,
}

/// Builds all test binaries that `arguments` of `cargo test` choose.
///
/// # Errors
/// Something does not compile; cargo has printed what.
pub fn build(arguments: &[&str]) -> Result<Vec<Binary>> {
    build_for(Arch::HOST, arguments, "")
}

/// The same for an architecture, with these more flags for the compiler. For another one than the host's, as an emulator
/// needs it.
///
/// # Errors
/// As [`build`], or there is no standard library for the architecture.
pub fn build_for(arch: Arch, arguments: &[&str], flags: &str) -> Result<Vec<Binary>> {
    let mut cargo = process::command("cargo");
    cargo.args(["test", "--no-run", "--message-format=json-render-diagnostics"]).args(arguments);
    cargo.current_dir(paths::root()).stderr(Stdio::inherit());
    if !arch.is_host() {
        cross::set_up_programs(&mut cargo, arch, flags)?;
    } else if !flags.is_empty() {
        cargo.env("RUSTFLAGS", flags);
    }
    let messages = process::text(&mut cargo).map_err(|_| Error::new("the tests do not compile"))?;
    Ok(messages.lines().filter_map(|line| parse_artifact(line, arch)).collect())
}

/// The names of all targets of a kind, "test" or "bench", in these packages of the workspace, or in all if none is given.
///
/// # Errors
/// A manifest is wrong.
pub fn target_names(kind: &str, of: &[&str]) -> Result<Vec<String>> {
    let mut cargo = process::command("cargo");
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]).current_dir(paths::root());
    let all: Value = serde_json::from_str(&process::text(&mut cargo)?)
        .map_err(|error| Error::new(format!("cargo metadata: {error}")))?;
    let packages = all["packages"].as_array().into_iter().flatten();
    let wanted =
        |package: &&Value| of.is_empty() || package["name"].as_str().is_some_and(|name| of.contains(&name));
    let targets = packages.filter(wanted).filter_map(|package| package["targets"].as_array()).flatten();
    let of_kind = targets.filter(|target| target["kind"][0] == kind);
    let names: BTreeSet<&str> = of_kind.filter_map(|target| target["name"].as_str()).collect();
    Ok(names.into_iter().map(str::to_owned).collect())
}

/// Lists the tests of a binary.
///
/// # Errors
/// The binary does not run.
pub fn tests(binary: &Binary) -> Result<Vec<Test>> {
    let test = |name, ignored| Test { binary: binary.clone(), name, ignored };
    if binary.is_bench {
        return Ok(vec![test(binary.target.clone(), false)]);
    }
    let list = |more: &[&str]| {
        let mut command = process::command(&binary.file);
        if !binary.arch.is_host() {
            command = process::command(binary.arch.facts().emulator);
            command.arg(&binary.file);
        }
        command.args(["--list", "--format", "terse"]).args(more).current_dir(&binary.folder);
        process::text(&mut command).map(|list| libtest::names(&list))
    };
    let ignored = list(&["--ignored"])?;
    Ok(list(&[])?.into_iter().map(|name| test(name.clone(), ignored.contains(&name))).collect())
}

/// Lists the tests of binaries.
///
/// # Errors
/// One does not run.
pub fn all_tests(binaries: &[Binary]) -> Result<Vec<Test>> {
    let tests: Result<Vec<Vec<Test>>> = binaries.iter().map(tests).collect();
    Ok(tests?.concat())
}

/// One line of cargo's messages, if it tells of a test binary.
fn parse_artifact(line: &str, arch: Arch) -> Option<Binary> {
    let message: Value = serde_json::from_str(line).ok()?;
    if message["reason"] != "compiler-artifact" || message["profile"]["test"] != true {
        return None;
    }
    let file = PathBuf::from(message["executable"].as_str()?);
    let folder = Path::new(message["manifest_path"].as_str()?).parent()?.to_path_buf();
    let target = message["target"]["name"].as_str()?.to_owned();
    let kind = message["target"]["kind"][0].as_str()?;
    let package = package_name(message["package_id"].as_str()?);
    let id = match kind {
        "lib" | "rlib" | "proc-macro" => package.to_owned(),
        "test" => format!("{package}::{target}"),
        other => format!("{package}::{other}/{target}"),
    };
    let starts_examples = package == FACADE && (kind == "test" || kind == "bench");
    Some(Binary { arch, id, target, file, folder, is_bench: kind == "bench", starts_examples })
}

/// The name in a package id such as `path+file:///w/devices/bus#ossature-bus@0.1.0`, or
/// `path+file:///w/xtask#0.1.0`, where the folder has the package's name.
pub fn package_name(id: &str) -> &str {
    let (place, fragment) = id.rsplit_once('#').unwrap_or((id, ""));
    match fragment.split_once('@') {
        Some((name, _)) => name,
        None => place.rsplit('/').next().unwrap_or(place),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Binary> {
        parse_artifact(line, Arch::HOST)
    }

    fn artifact(kind: &str, is_test: bool, executable: &str) -> String {
        format!(
            r#"{{"reason":"compiler-artifact","package_id":"path+file:///w/vmm-core#ossature-core@0.1.0",
            "manifest_path":"/w/vmm-core/Cargo.toml","target":{{"kind":["{kind}"],"name":"kvm_run"}},
            "profile":{{"test":{is_test}}},"executable":{executable}}}"#
        )
    }

    #[test]
    fn test_binaries_are_found_among_cargos_messages() {
        let binary = parse(&artifact("test", true, "\"/t/kvm_run-12\"")).unwrap();
        assert_eq!(binary.id, "ossature-core::kvm_run");
        assert_eq!(binary.target, "kvm_run");
        assert_eq!(binary.file, Path::new("/t/kvm_run-12"));
        assert_eq!(binary.folder, Path::new("/w/vmm-core"));
        assert!(!binary.is_bench);
        assert!(!binary.starts_examples);
        assert!(parse(&artifact("bench", true, "\"/t/b\"")).unwrap().is_bench);
        let of_facade = artifact("test", true, "\"/t/b\"").replace("ossature-core@", "ossature@");
        assert!(parse(&of_facade).unwrap().starts_examples);
        assert_eq!(parse(&artifact("lib", true, "\"/t/b\"")).unwrap().id, "ossature-core");
        assert_eq!(parse(&artifact("bin", false, "\"/t/b\"")), None);
        assert_eq!(parse(&artifact("lib", true, "null")), None);
        assert_eq!(parse(r#"{"reason":"build-finished","success":true}"#), None);
    }

    #[test]
    fn integration_tests_are_known_by_name() {
        let names = target_names("test", &[]).unwrap();
        assert!(names.iter().any(|name| name == "instructions"), "{names:?}");
        assert!(names.iter().any(|name| name.starts_with("guest_")), "{names:?}");
    }

    #[test]
    fn package_names_come_from_both_kinds_of_ids() {
        assert_eq!(package_name("path+file:///w/devices/bus#ossature-bus@0.1.0"), "ossature-bus");
        assert_eq!(package_name("path+file:///w/xtask#0.1.0"), "xtask");
    }
}
