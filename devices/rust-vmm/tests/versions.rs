//! The set of versions: each package of rust-vmm is a normal dependency, and there is one version of it, whatever else is
//! built with it.
#![allow(clippy::unwrap_used)] // helpers of tests, too, may panic

use std::collections::BTreeSet;
use std::process::Command;

const PACKAGES: [&str; 9] = [
    "event-manager",
    "kvm-bindings",
    "kvm-ioctls",
    "linux-loader",
    "virtio-queue",
    "vm-device",
    "vm-memory",
    "vm-superio",
    "vmm-sys-util",
];

/// Names and versions of what cargo shows.
fn tree(args: &[&str]) -> Vec<(String, String)> {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["tree", "--offline", "--prefix", "none"]).args(args);
    let output = cargo.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).unwrap();
    let package = |line: &str| {
        let (name, rest) = line.split_once(' ')?;
        Some((name.to_owned(), rest.split_whitespace().next()?.to_owned()))
    };
    text.lines().filter_map(package).collect()
}

#[test]
fn each_package_of_rust_vmm_is_a_normal_dependency_of_one_version() {
    let direct = tree(&["--edges", "normal", "--depth", "1"]);
    let all: BTreeSet<_> = tree(&["--workspace", "--edges", "normal,build,dev"]).into_iter().collect();
    for package in PACKAGES {
        let versions: Vec<_> = all.iter().filter(|(name, _)| name == package).collect();
        assert_eq!(versions.len(), 1, "{versions:?}");
        assert_eq!(direct.iter().filter(|found| *found == versions[0]).count(), 1, "{package}: {direct:?}");
    }
    // What else is theirs has one version too.
    for package in ["virtio-bindings", "virtio-vsock", "acpi_tables"] {
        let versions: Vec<_> = all.iter().filter(|(name, _)| name == package).collect();
        assert!(versions.len() <= 1, "{versions:?}");
    }
}
