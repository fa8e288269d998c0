//! Packages of another architecture's Debian: downloaded and unpacked in the target folder, never installed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::arch::Arch;
use crate::{Context, Error, Result, packages, paths, process};

/// Debian for another architecture, by lists of its own: this host's APT does not learn of another architecture.
#[derive(Debug)]
pub struct Port {
    arch: Arch,
    options: Vec<String>,
}

impl Port {
    /// Downloads the lists.
    ///
    /// # Errors
    /// The host is not a Debian, or there is no network.
    pub fn update(arch: Arch) -> Result<Self> {
        if !packages::is_debian() {
            return Err(Error::needs_developer(
                "packages of another architecture are fetched on Debian only",
            ));
        }
        let debian = arch.facts().debian;
        let folder = folder(arch);
        let (lists, cache) = (folder.join("lists"), folder.join("cache"));
        for parent in [&lists, &cache.join("archives")] {
            let partial = parent.join("partial");
            fs::create_dir_all(&partial).context(partial.display())?;
        }
        let option = |name: &str, value: &dyn std::fmt::Display| ["-o".to_owned(), format!("{name}={value}")];
        let options = [
            option("APT::Architecture", &debian),
            option("APT::Architectures::", &debian),
            option("APT::Sandbox::User", &"root"),
            option("Dir::Cache", &cache.display()),
            option("Dir::State::lists", &lists.display()),
            option("Dir::State::status", &"/dev/null"),
        ];
        let port = Self { arch, options: options.concat() };
        eprintln!("  reading the lists of Debian's {debian} packages into {}", lists.display());
        process::output(port.command("apt-get").arg("update"))?;
        Ok(port)
    }

    fn command(&self, program: &str) -> std::process::Command {
        let mut command = process::command(program);
        command.args(&self.options);
        command
    }

    /// What a package depends on, as `apt-cache depends` prints it.
    ///
    /// # Errors
    /// There is no such package.
    pub fn depends(&self, package: &str) -> Result<String> {
        process::text(self.command("apt-cache").args(["depends", package]))
    }

    /// The newest version of a package.
    ///
    /// # Errors
    /// There is no such package.
    pub fn version(&self, package: &str) -> Result<String> {
        let shown = process::text(self.command("apt-cache").args(["show", "--no-all-versions", package]))?;
        let version = shown.lines().find_map(|line| line.strip_prefix("Version: "));
        let debian = self.arch.facts().debian;
        version.map(str::to_owned).ok_or_else(|| Error::new(format!("Debian for {debian} has no {package}")))
    }

    /// Downloads a package and unpacks it as `folder`, which is not there before it is complete.
    ///
    /// # Errors
    /// The download fails, or `folder` cannot be written.
    pub fn unpack(&self, package: &str, version: &str, folder: &Path) -> Result<()> {
        let mut part = folder.as_os_str().to_owned();
        part.push(".part");
        let part = PathBuf::from(part);
        if part.exists() {
            fs::remove_dir_all(&part).context(part.display())?;
        }
        fs::create_dir_all(&part).context(part.display())?;
        eprintln!("  downloading {package} {version} for {}", self.arch.facts().debian);
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

/// Where everything of an architecture is.
fn folder(arch: Arch) -> PathBuf {
    paths::target().join("port").join(arch.facts().debian)
}

/// What every Debian has beside the packages of programs.
const ESSENTIAL: &str = "?essential";

/// A folder with these packages of another architecture's Debian, all that is essential, and what they need, as the root of
/// a machine that is not set up further: unpacked, without having run any of their scripts.
///
/// # Errors
/// They cannot be fetched.
pub fn userland(arch: Arch, packages: &[&str], more: &[&str]) -> Result<PathBuf> {
    // A folder for each set, so that none is unpacked anew because another was wanted meanwhile.
    let folder = folder(arch).join(["root"].iter().chain(more).copied().collect::<Vec<_>>().join("-"));
    let packages = [packages, more].concat();
    let list = folder.join(".packages");
    let wanted = packages.join(" ");
    if fs::read_to_string(&list).is_ok_and(|list| list == wanted) {
        return Ok(folder);
    }
    if folder.exists() {
        fs::remove_dir_all(&folder).context(folder.display())?;
    }
    let port = Port::update(arch)?;
    eprintln!("  downloading Debian's {} packages of {wanted}", arch.facts().debian);
    let mut apt = port.command("apt-get");
    apt.args(["--yes", "--no-install-recommends", "--download-only", "install", ESSENTIAL]).args(&packages);
    process::output(&mut apt)?;
    for part in ["bin", "sbin", "lib"] {
        let usr = folder.join("usr").join(part);
        fs::create_dir_all(&usr).context(usr.display())?;
        let link = folder.join(part);
        std::os::unix::fs::symlink(format!("usr/{part}"), &link).context(link.display())?;
    }
    let archives = self::folder(arch).join("cache/archives");
    for entry in fs::read_dir(&archives).context(archives.display())?.flatten() {
        let file = entry.path();
        if file.extension().is_some_and(|extension| extension == "deb") {
            // `dpkg -x` would put a folder where a link to one is.
            let script = "dpkg --fsys-tarfile \"$1\" | tar -x --keep-directory-symlink -C \"$2\"";
            process::output(process::command("sh").args(["-c", script, "sh"]).arg(&file).arg(&folder))?;
            fs::remove_file(&file).context(file.display())?;
        }
    }
    // Programs look for who they run as; the script that writes it was not run.
    for (file, line) in [("passwd", "root:x:0:0:root:/root:/bin/sh\n"), ("group", "root:x:0:\n")] {
        let file = folder.join("etc").join(file);
        fs::write(&file, line).context(file.display())?;
    }
    fs::write(&list, wanted).context(list.display())?;
    Ok(folder)
}

/// Another architecture's statically linked busybox.
///
/// # Errors
/// It cannot be fetched.
pub fn busybox(arch: Arch) -> Result<PathBuf> {
    let folder = folder(arch).join("busybox-static");
    if !folder.exists() {
        let port = Port::update(arch)?;
        port.unpack("busybox-static", &port.version("busybox-static")?, &folder)?;
    }
    Ok(folder.join("bin/busybox"))
}
