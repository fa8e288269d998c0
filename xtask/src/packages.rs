//! Debian packages that the commands call: installed by root, named to everybody else.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::{Error, Result, process};

/// What each program that the commands call comes in.
const PROGRAMS: &[(&str, &str)] = &[
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("iasl", "acpica-tools"),
    ("dmidecode", "dmidecode"),
    ("depmod", "kmod"),
    ("ip", "iproute2"),
    ("mke2fs", "e2fsprogs"),
    ("tcpdump", "tcpdump"),
    ("xz", "xz-utils"),
    ("lz4", "lz4"),
    ("valgrind", "valgrind"),
    ("strace", "strace"),
];

/// How often, and how long after each other, `apt-get` is called while another process holds its locks.
const LOCK_ATTEMPTS: usize = 300;
const LOCK_PAUSE: Duration = Duration::from_secs(2);

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
    if !is_debian() {
        return Err(Error::needs_developer(format!(
            "please install what your distribution calls these Debian packages: {}",
            missing.join(" ")
        )));
    }
    if install(&missing, "").is_err() {
        update_lists()?;
        install(&missing, "")?;
    }
    match self::missing() {
        still if still.is_empty() => Ok(()),
        still => Err(Error::new(format!("still missing after the installation: {}", still.join(" ")))),
    }
}

/// Installs Debian packages, or upgrades them, with these options of `apt-get`, and prints which.
///
/// # Errors
/// Not root: the message holds the command to run. Or a package is unknown, or conflicts with an installed one.
pub fn install(names: &[&str], options: &str) -> Result<()> {
    let names = names.join(" ");
    let command = format!("apt-get install --no-install-recommends {options} --yes {names}");
    if !process::is_root() {
        return Err(Error::needs_developer(format!("please run: sudo apt-get update; sudo {command}")));
    }
    eprintln!("installing Debian packages: {names}");
    run_quietly(&command)
}

/// Downloads a Debian package into `folder`, unless it is there, and prints which. Returns its file.
///
/// # Errors
/// The host is not a Debian, the package is unknown, or there is no network.
pub fn download(name: &str, folder: &Path) -> Result<PathBuf> {
    if let Some(file) = downloaded(name, folder) {
        return Ok(file);
    }
    if !is_debian() {
        return Err(Error::needs_developer(format!("Debian's package {name} is fetched on Debian only")));
    }
    eprintln!("downloading {name} into {}", folder.display());
    let get = || {
        let mut apt = process::command("apt-get");
        apt.args(["-o", "APT::Sandbox::User=root", "download", name]).current_dir(folder);
        process::output(&mut apt)
    };
    if get().is_err() {
        update_lists()?;
        get()?;
    }
    downloaded(name, folder)
        .ok_or_else(|| Error::new(format!("apt-get did not leave {name} in {}", folder.display())))
}

/// The file of a package in `folder`, if it has been downloaded.
pub fn downloaded(name: &str, folder: &Path) -> Option<PathBuf> {
    let start = format!("{name}_");
    fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|file| file.starts_with(&start) && file.ends_with(".deb"))
        .map(|file| folder.join(file))
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

/// The host's statically linked busybox.
///
/// # Errors
/// There is none, or it needs shared libraries, which a guest does not have.
pub fn busybox() -> Result<PathBuf> {
    let program = PathBuf::from("/bin/busybox");
    // A dynamically linked ELF file names its loader near its start.
    let is_static = fs::read(&program)
        .is_ok_and(|bytes| !bytes.windows(9).take(4096).any(|window| window == b"ld-linux-"));
    if is_static {
        return Ok(program);
    }
    Err(Error::needs_developer("/bin/busybox is missing or dynamic: please install busybox-static"))
}

fn run_quietly(command: &str) -> Result<()> {
    let mut apt = process::command("sh");
    apt.args(["-c", command]).env("DEBIAN_FRONTEND", "noninteractive");
    for _ in 0..LOCK_ATTEMPTS {
        match process::output(&mut apt) {
            Err(error) if error.message.contains("Could not get lock") => thread::sleep(LOCK_PAUSE),
            other => return other.map(drop),
        }
    }
    process::output(&mut apt).map(drop)
}

fn missing() -> Vec<&'static str> {
    let mut missing: Vec<&str> =
        PROGRAMS.iter().filter(|(program, _)| !has(program)).map(|(_, package)| *package).collect();
    if busybox().is_err() {
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
