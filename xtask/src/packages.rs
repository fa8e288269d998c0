//! Debian packages that the commands call: installed by root, named to everybody else.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use crate::host::Kvm;
use crate::{Error, Result, cross, process};

/// What each program that the commands call comes in.
const PROGRAMS: &[(&str, &str)] = &[
    ("aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
    (BUSYBOX, "busybox-static"),
    ("btrfs", "btrfs-progs"),
    ("depmod", "kmod"),
    ("dmidecode", "dmidecode"),
    ("dmsetup", "dmsetup"),
    ("dtc", "device-tree-compiler"),
    ("fio", "fio"),
    ("iasl", "acpica-tools"),
    ("ip", "iproute2"),
    (LIBC_ARM64, "libc6-dev-arm64-cross"),
    ("lspci", "pciutils"),
    ("lz4", "lz4"),
    ("mke2fs", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("passt", "passt"),
    ("qemu-aarch64", "qemu-user"),
    ("qemu-img", "qemu-utils"),
    ("qemu-system-aarch64", "qemu-system-arm"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("socat", "socat"),
    ("strace", "strace"),
    ("tcpdump", "tcpdump"),
    ("tshark", "tshark"),
    ("valgrind", "valgrind"),
    ("xz", "xz-utils"),
];

/// The host's busybox, which runs in guests and therefore has to be static.
const BUSYBOX: &str = "busybox";
/// No program: what static programs for arm64 are linked with.
const LIBC_ARM64: &str = "libc.a for arm64";

/// What unpacks Debian's kernel for guests and makes their file systems.
pub const GUEST: &[&str] = &[BUSYBOX, "depmod", "lz4"];
/// What runs the nested machine.
pub const NESTED: &[&str] = &[BUSYBOX, "depmod", "xz", "qemu-system-x86_64"];
/// What runs the nested machine of the other architecture, and builds the VMM for it.
pub const NESTED_AARCH64: &[&[&str]] = &[&[BUSYBOX, "depmod", "qemu-system-aarch64"], cross::LINKER];
/// What builds, lists and runs its tests.
pub const CROSS_TESTS: &[&str] =
    &[BUSYBOX, "depmod", "lz4", "qemu-system-aarch64", "qemu-aarch64", "aarch64-linux-gnu-gcc", LIBC_ARM64];

/// How long `apt-get` is called again while another process holds one of its locks.
const LOCK_LIMIT: Duration = Duration::from_secs(1800);
/// How long after each other it is called.
const LOCK_PAUSE: Duration = Duration::from_secs(1);
/// How often the developer is told that it still waits.
const LOCK_REMINDER: Duration = Duration::from_secs(30);

/// What runs guests with stock kernels here: nothing, or the nested machine.
pub fn machine() -> &'static [&'static str] {
    if Kvm::detect() == Kvm::Full { &[] } else { NESTED }
}

/// Makes sure that the programs which a command calls are there: installs what is missing as root on Debian, and prints
/// which.
///
/// # Errors
/// Something is missing and cannot be installed: the message holds the command to run.
pub fn ensure(programs: &[&[&str]]) -> Result<()> {
    let programs = programs.concat();
    // Twice: what is installed can take away what was there, if that is from another release of Debian.
    for _ in 0..2 {
        let missing = missing(&programs, has)?;
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
    }
    match missing(&programs, has)? {
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

/// Runs `apt-get` or `dpkg` without questions, and in English: what it says about locks is looked for.
fn run_quietly(command: &str) -> Result<()> {
    let mut apt = process::command("sh");
    apt.args(["-c", command]).env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    wait_for_locks(&mut apt, LOCK_PAUSE, &mut |line| eprintln!("{line}"))
}

/// Calls a command again while another process holds a lock that it needs, and says what it waits for.
/// `DPkg::Lock::Timeout` is not enough: it is about one of the locks, not about those of the lists and the archives, and
/// what it says goes to standard output.
fn wait_for_locks(command: &mut Command, pause: Duration, say: &mut dyn FnMut(&str)) -> Result<()> {
    let start = Instant::now();
    let mut said: Option<(String, Instant)> = None;
    loop {
        let error = match process::output(command) {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        // The first line is the command.
        let said_by_it = error.message.split_once('\n').map_or("", |(_, said)| said);
        let Some(lock) = lock_held_by_another(said_by_it).filter(|_| start.elapsed() < LOCK_LIMIT) else {
            return Err(error);
        };
        let is_news =
            said.as_ref().is_none_or(|(before, at)| before != lock || at.elapsed() >= LOCK_REMINDER);
        if is_news {
            say(&format!(
                "waiting for another program that installs packages ({} s): {lock}",
                start.elapsed().as_secs()
            ));
            said = Some((lock.to_owned(), Instant::now()));
        }
        thread::sleep(pause);
    }
}

/// The line in which APT or dpkg names a lock that it does not get, and its holder.
fn lock_held_by_another(said: &str) -> Option<&str> {
    const LOCKED: &[&str] =
        &["Could not get lock", "Unable to acquire the dpkg frontend lock", "was locked by another process"];
    let line = said.lines().find(|line| LOCKED.iter().any(|words| line.contains(words)))?;
    Some(line.trim_start_matches("E: ").trim())
}

/// The packages of those programs that are not there.
fn missing(programs: &[&str], has: impl Fn(&str) -> bool) -> Result<Vec<&'static str>> {
    let mut missing = Vec::new();
    for program in programs.iter().filter(|program| !has(program)) {
        let package = PROGRAMS.iter().find(|(known, _)| known == program).map(|(_, package)| *package);
        let package = package.ok_or_else(|| Error::new(format!("no package is known for {program}")))?;
        if !missing.contains(&package) {
            missing.push(package);
        }
    }
    Ok(missing)
}

fn has(program: &str) -> bool {
    if program == BUSYBOX {
        return busybox().is_ok();
    }
    if program == LIBC_ARM64 {
        return Path::new("/usr/aarch64-linux-gnu/lib/libc.a").exists();
    }
    let find = format!("command -v {}", process::quote(program));
    process::output(process::command("sh").arg("-c").arg(find)).is_ok()
}

#[cfg(test)]
mod tests;
