//! A lock file has one version of each crate of rust-vmm.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::{Context, Error, Result};

/// Crates of the rust-vmm project: two versions of one of them in a program do not fit together.
const RUST_VMM: &[&str] = &[
    "acpi_tables",
    "event-manager",
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

/// Fails if a lock file has more than one version of a crate of rust-vmm.
pub fn one_version_each(lock: &Path) -> Result<()> {
    let duplicates = duplicates(&fs::read_to_string(lock).context(lock.display())?);
    if duplicates.is_empty() {
        return Ok(());
    }
    Err(Error::new(format!("{}: more than one version of {}", lock.display(), duplicates.join(", "))))
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
