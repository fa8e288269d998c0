//! The check that the workspace compiles for aarch64, with a standard library for it from rustup or from Debian.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Context, Error, Result, packages, paths, process};

const TARGET: &str = "aarch64-unknown-linux-gnu";
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

/// Debian 12's current compiler: the package `rustc` of that release is older than ours has to be.
const COMPILER: &str = "rustc-web";
const COMPILER_PROGRAM: &str = "/usr/bin/rustc";
/// The standard library that belongs to it.
const LIBRARY: &str = "libstd-rust-web-dev";

/// Checks the libraries and programs of the whole workspace, and the tests that are not x86's. Has a target folder of
/// its own, so that the other steps find theirs as they left it.
pub fn check() -> Result<()> {
    let sysroot = if has_target() || rustup_adds_target() { None } else { Some(debian_sysroot()?) };
    let check = |what: &[&str]| {
        let mut cargo = process::command("cargo");
        let mut flags = "-D warnings".to_owned();
        if let Some(sysroot) = &sysroot {
            cargo.env("RUSTC", COMPILER_PROGRAM);
            flags = format!("{flags} --sysroot {}", sysroot.display());
        }
        cargo
            .args(["check", "--target", TARGET, "--target-dir"])
            .arg(paths::target().join("aarch64"))
            .args(what);
        cargo.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUSTFLAGS", flags).env_remove("RUSTFLAGS");
        process::run(cargo.current_dir(paths::root()))
    };
    check(&["--workspace"])?;
    let tests = WITH_TESTS.iter().flat_map(|package| ["--package", package]);
    check(&tests.chain(["--all-targets"]).collect::<Vec<_>>())
}

/// The toolchain in use has a standard library for the target.
fn has_target() -> bool {
    let mut rustc = process::command("rustc");
    rustc.args(["--print", "target-libdir", "--target", TARGET]).current_dir(paths::root());
    let folder = process::text(&mut rustc).unwrap_or_default();
    fs::read_dir(folder.trim()).is_ok_and(|mut files| files.next().is_some())
}

/// Adds the target where rustup manages the toolchain.
fn rustup_adds_target() -> bool {
    let mut rustup = process::command("rustup");
    if process::output(rustup.arg("--version")).is_err() {
        return false;
    }
    println!("  adding {TARGET} to the toolchain (rustup target add {TARGET})");
    let mut rustup = process::command("rustup");
    match process::output(rustup.args(["target", "add", TARGET]).current_dir(paths::root())) {
        Ok(_) => true,
        Err(error) => {
            println!("  {error}");
            false
        }
    }
}

/// A sysroot for Debian's compiler that holds the target's standard library, which Debian has as a package of its
/// arm64 port: downloaded and unpacked in the target folder, not installed.
fn debian_sysroot() -> Result<PathBuf> {
    if !packages::is_debian() {
        return Err(Error::needs_developer(format!("please run: rustup target add {TARGET}")));
    }
    let folder = paths::target().join("aarch64-std");
    let sysroot = |version: &str| folder.join(version).join("usr");
    if let Some(sysroot) = installed().map(|version| sysroot(&version)).filter(|sysroot| sysroot.exists()) {
        return Ok(sysroot);
    }
    let port = Arm64Packages::update(&folder.join("apt"))?;
    let version = port.version(LIBRARY)?;
    if installed().as_ref() != Some(&version) {
        if process::is_root() {
            packages::update_lists()?;
        }
        // It would take the place of an older `rustc`: that is for the developer to decide.
        packages::install(&[COMPILER], "--no-remove")?;
    }
    match installed() {
        Some(found) if found == version => {}
        found => {
            let found = found.unwrap_or_else(|| "none".to_owned());
            let message = format!("{COMPILER} {version} is needed for {LIBRARY}; installed is {found}");
            return Err(Error::new(message));
        }
    }
    port.unpack(LIBRARY, &version, &folder.join(&version))?;
    Ok(sysroot(&version))
}

/// The version of the compiler's package, if it is installed.
fn installed() -> Option<String> {
    let mut dpkg = process::command("dpkg-query");
    dpkg.args(["--show", "--showformat", "${db:Status-Status} ${Version}", COMPILER]);
    process::text(&mut dpkg).ok()?.strip_prefix("installed ").map(str::to_owned)
}

/// The packages of Debian's arm64 port, by lists of their own: this host's APT does not learn of another architecture.
struct Arm64Packages {
    options: Vec<String>,
}

impl Arm64Packages {
    /// Downloads the lists into `folder`.
    fn update(folder: &Path) -> Result<Self> {
        let (lists, cache) = (folder.join("lists"), folder.join("cache"));
        for parent in [&lists, &cache.join("archives")] {
            let partial = parent.join("partial");
            fs::create_dir_all(&partial).context(partial.display())?;
        }
        let option = |name: &str, value: &dyn std::fmt::Display| ["-o".to_owned(), format!("{name}={value}")];
        let options = [
            option("APT::Architecture", &"arm64"),
            option("APT::Architectures::", &"arm64"),
            option("APT::Sandbox::User", &"root"),
            option("Dir::Cache", &cache.display()),
            option("Dir::State::lists", &lists.display()),
            option("Dir::State::status", &"/dev/null"),
        ];
        let port = Self { options: options.concat() };
        println!("  reading the lists of Debian's arm64 packages into {}", lists.display());
        process::output(port.command("apt-get").arg("update"))?;
        Ok(port)
    }

    fn command(&self, program: &str) -> std::process::Command {
        let mut command = process::command(program);
        command.args(&self.options);
        command
    }

    /// The newest version of a package.
    fn version(&self, package: &str) -> Result<String> {
        let shown = process::text(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
        version.map(str::to_owned).ok_or_else(|| Error::new(format!("Debian's arm64 port has no {package}")))
    }

    /// Downloads a package and unpacks it as `folder`, which is not there before it is complete.
    fn unpack(&self, package: &str, version: &str, folder: &Path) -> Result<()> {
        let part = folder.with_extension("part");
        if part.exists() {
            fs::remove_dir_all(&part).context(part.display())?;
        }
        fs::create_dir_all(&part).context(part.display())?;
        println!("  downloading {package} {version} for arm64");
        let mut apt = self.command("apt-get");
        process::output(apt.arg("download").arg(format!("{package}={version}")).current_dir(&part))?;
        for entry in fs::read_dir(&part).context(part.display())?.flatten() {
            let file = entry.path();
            process::output(process::command("dpkg").arg("-x").arg(&file).arg(&part))?;
            fs::remove_file(&file).context(file.display())?;
        }
        fs::rename(&part, folder).context(folder.display())
    }
}
