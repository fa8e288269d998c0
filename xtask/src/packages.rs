//! Debian packages that the commands call: installed by root, named to everybody else.

use std::fs;

use crate::{Error, Result, process};

/// What each program that the commands call comes in.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("iasl", "acpica-tools"),
    ("depmod", "kmod"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("tcpdump", "tcpdump"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("valgrind", "valgrind"),
    ("strace", "strace"),
];

/// Makes sure that every program is there: installs what is missing as root on Debian, and prints
/// which.
///
/// # Errors
/// Something is missing and cannot be installed: the message holds the command to run.
pub fn ensure() -> Result<()> {
    let missing = missing();
    if missing.is_empty() {
        return Ok(());
    }
    let names = missing.join(" ");
    if !is_debian() {
        return Err(Error::needs_developer(format!(
            "please install what your distribution calls these Debian packages: {names}"
        )));
    }
    let install = format!("apt-get install --no-install-recommends --yes {names}");
    if !process::is_root() {
        return Err(Error::needs_developer(format!("please run: sudo {install}")));
    }
    eprintln!("installing Debian packages: {names}");
    if run_quietly(&install).is_err() {
        update_lists()?;
        run_quietly(&install)?;
    }
    match self::missing() {
        still if still.is_empty() => Ok(()),
        still => Err(Error::new(format!("still missing after the installation: {}", still.join(" ")))),
    }
}

/// Reads the lists of packages anew.
///
/// # Errors
/// Not root, or no network.
pub fn update_lists() -> Result<()> {
    if !process::is_root() {
        return Err(Error::needs_developer("please run: sudo apt-get update"));
    }
    eprintln!("reading the lists of Debian packages (apt-get update)");
    run_quietly("apt-get update")
}

/// The host is Debian or made from it, so that `apt-get` knows Debian's kernels.
pub fn is_debian() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    release.lines().any(|line| line == "ID=debian")
}

fn run_quietly(command: &str) -> Result<()> {
    let mut apt = process::command("sh");
    apt.args(["-c", command]).env("DEBIAN_FRONTEND", "noninteractive");
    process::output(&mut apt).map(drop)
}

fn missing() -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if crate::guest::busybox().is_err() {
        missing.push("busybox-static");
    }
    missing
}

fn has(program: &str) -> bool {
    let find = format!("command -v {}", process::quote(program));
    process::output(process::command("sh").arg("-c").arg(find)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_found_and_a_made_up_one_is_not() {
        assert!(has("sh"));
        assert!(!has("no-such-program-anywhere"));
    }
}
