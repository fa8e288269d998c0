//! Debian's current kernels, downloaded into the target folder and unpacked there, never installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::arch::Arch;
use crate::port::Port;
use crate::{Context, Error, Result, packages, paths, process};

/// Which of Debian's kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Such as `linux-image-cloud-amd64`: drivers of virtual machines only. The guest of demo and tests.
    Cloud,
    /// Such as `linux-image-amd64`: has 9p and KVM. Runs the nested machine.
    Generic,
}

impl Flavour {
    /// The end of a release's name.
    fn suffix(self, arch: Arch) -> String {
        let debian = arch.facts().debian;
        match self {
            Flavour::Cloud => format!("cloud-{debian}"),
            Flavour::Generic => debian.to_owned(),
        }
    }

    /// The name of the package that depends on the current kernel.
    fn metapackage(self, arch: Arch) -> String {
        format!("linux-image-{}", self.suffix(arch))
    }
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What it runs on.
    pub arch: Arch,
    /// As `uname -r` prints it in the guest.
    pub release: String,
    /// The folder that the package is unpacked in.
    pub folder: PathBuf,
}

/// A kernel module and the parameters it is to be loaded with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    /// The `.ko` file on the host.
    pub file: PathBuf,
    /// What follows the file name on the `insmod` command line; mostly empty.
    pub parameters: String,
}

impl Kernel {
    /// The kernel as the package holds it: a bzImage on x86_64, an Image on aarch64.
    pub fn vmlinuz(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinuz-{}", self.release))
    }

    /// The kernel as a VMM loads it without unpacking: an ELF file that was unpacked from the bzImage when the package was,
    /// or an Image.
    pub fn vmlinux(&self) -> PathBuf {
        self.folder.join("boot").join(format!("vmlinux-{}", self.release))
    }

    /// The modules of these names with everything they need, in the order to load them in. What is
    /// built into the kernel is left out.
    ///
    /// # Errors
    /// The kernel has no module of one of the names, or `modprobe` is missing.
    pub fn modules(&self, names: &[&str]) -> Result<Vec<Module>> {
        let mut modprobe = process::command("modprobe");
        modprobe
            .arg("-d")
            .arg(&self.folder)
            .args(["-S", &self.release, "--all", "--show-depends"])
            .args(names);
        let mut modules = Vec::new();
        for module in process::text(&mut modprobe)?.lines().filter_map(parse_insmod) {
            if !modules.contains(&module) {
                modules.push(module);
            }
        }
        Ok(modules)
    }
}

/// The kernel that an earlier [`fetch`] unpacked; the newest if there are several.
pub fn cached(flavour: Flavour) -> Option<Kernel> {
    cached_for(Arch::HOST, flavour)
}

fn cached_for(arch: Arch, flavour: Flavour) -> Option<Kernel> {
    let mut found: Vec<Kernel> = fs::read_dir(folder())
        .ok()?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter_map(|name| Some((abi(&name, arch, flavour)?, name)))
        .map(|(_, release)| Kernel { arch, folder: folder().join(&release), release })
        .filter(|kernel| kernel.vmlinux().exists())
        .collect();
    found.sort_by_key(|kernel| abi(&kernel.release, arch, flavour));
    found.pop()
}

/// Debian's current kernel of this flavour. Downloads and unpacks it unless an earlier call did.
///
/// # Errors
/// The host is not a Debian, or the download fails and no earlier one is there.
pub fn fetch(flavour: Flavour) -> Result<Kernel> {
    let release = match current_release(flavour) {
        Ok(release) => release,
        Err(error) => return cached(flavour).ok_or(error),
    };
    let kernel = Kernel { arch: Arch::HOST, folder: folder().join(&release), release };
    if !kernel.vmlinux().exists() {
        unpack(&kernel)?;
    }
    Ok(kernel)
}

/// The same for an architecture. Of another one than the host's, a kernel that is there is taken, whatever is current.
///
/// # Errors
/// As [`fetch`].
pub fn fetch_for(arch: Arch, flavour: Flavour) -> Result<Kernel> {
    if arch.is_host() {
        return fetch(flavour);
    }
    if let Some(kernel) = cached_for(arch, flavour) {
        return Ok(kernel);
    }
    let port = Port::update(arch)?;
    let meta = flavour.metapackage(arch);
    let depends = port.depends(&meta)?;
    let release = parse_depends(&depends, arch, flavour)
        .ok_or_else(|| Error::new(format!("apt-cache names no kernel for {meta}")))?;
    let kernel = Kernel { arch, folder: folder().join(release), release: release.to_owned() };
    if kernel.folder.exists() {
        // An earlier call did not come to its end.
        fs::remove_dir_all(&kernel.folder).context(kernel.folder.display())?;
    }
    let package = format!("linux-image-{release}");
    port.unpack(&package, &port.version(&package)?, &kernel.folder)?;
    complete(&kernel)?;
    Ok(kernel)
}

fn folder() -> PathBuf {
    paths::target().join("kernels")
}

fn unpack(kernel: &Kernel) -> Result<()> {
    let start = Instant::now();
    let folder = folder();
    fs::create_dir_all(&folder).context(folder.display())?;
    let package = match packages::downloaded(&format!("linux-image-{}", kernel.release), &folder) {
        Some(package) => package,
        None => {
            let name = format!("linux-image-{}", kernel.release);
            packages::download(&name, &folder)?
        }
    };
    eprintln!("unpacking {}", package.display());
    process::run(process::command("dpkg").arg("-x").arg(&package).arg(&kernel.folder)).inspect_err(|_| {
        // A damaged download: the next call fetches it anew.
        let _ = fs::remove_file(&package);
    })?;
    complete(kernel)?;
    eprintln!("Linux {} is ready after {:.1} s", kernel.release, start.elapsed().as_secs_f32());
    Ok(())
}

/// Makes what an unpacked package lacks: the list of modules' needs, and last the kernel as it is loaded.
fn complete(kernel: &Kernel) -> Result<()> {
    process::run(process::command("depmod").arg("-b").arg(&kernel.folder).arg(&kernel.release))?;
    match kernel.arch {
        Arch::X86_64 => unpack_elf(&kernel.vmlinuz(), &kernel.vmlinux()),
        Arch::Aarch64 => {
            fs::hard_link(kernel.vmlinuz(), kernel.vmlinux()).context(kernel.vmlinux().display())
        }
    }
}

/// Unpacks the ELF file that a bzImage carries (Documentation/arch/x86/boot.rst: `setup_sects`,
/// `payload_offset` and `payload_length`).
fn unpack_elf(image: &Path, elf: &Path) -> Result<()> {
    let bytes = fs::read(image).context(image.display())?;
    let payload = payload(&bytes).ok_or_else(|| Error::new(format!("{}: not a bzImage", image.display())))?;
    let packed = elf.with_extension("packed");
    fs::write(&packed, payload).context(packed.display())?;
    let tool = if payload.starts_with(b"\xfd7zXZ") { "xz" } else { "lz4" };
    // Both complain about the four bytes behind the end that hold the unpacked size.
    let unpacked = process::command(tool).arg("-dc").arg(&packed).output().context(tool)?;
    fs::remove_file(&packed).context(packed.display())?;
    if !unpacked.stdout.starts_with(b"\x7fELF") {
        let said = String::from_utf8_lossy(&unpacked.stderr);
        return Err(Error::new(format!("{tool} cannot unpack {}: {said}", image.display())));
    }
    let part = elf.with_extension("part");
    fs::write(&part, &unpacked.stdout).context(part.display())?;
    fs::rename(&part, elf).context(elf.display())
}

fn payload(image: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| Some(u32::from_le_bytes(image.get(at..at + 4)?.try_into().ok()?) as usize);
    let setup_sectors = usize::from(*image.get(0x1f1)?);
    let start = (setup_sectors + 1) * 512 + word(0x248)?;
    image.get(start..start.checked_add(word(0x24c)?)?)
}

fn current_release(flavour: Flavour) -> Result<String> {
    if !packages::is_debian() {
        return Err(Error::needs_developer(
            "Debian's kernels are fetched on Debian only: pass --kernel FILE, any kernel will do",
        ));
    }
    let meta = flavour.metapackage(Arch::HOST);
    let depends = || process::text(process::command("apt-cache").args(["depends", &meta]));
    let current = |text: String| parse_depends(&text, Arch::HOST, flavour).map(str::to_owned);
    if let Some(release) = depends().ok().and_then(current) {
        return Ok(release);
    }
    packages::update_lists()?;
    current(depends()?).ok_or_else(|| Error::new(format!("apt-cache names no kernel for {meta}")))
}

/// The kernel release that a metapackage depends on, from what `apt-cache depends` prints.
fn parse_depends(text: &str, arch: Arch, flavour: Flavour) -> Option<&str> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .find(|release| abi(release, arch, flavour).is_some())
}

/// Splits `6.1.0-56-cloud-amd64` into its numbers, if the flavour fits.
fn abi(release: &str, arch: Arch, flavour: Flavour) -> Option<Vec<u32>> {
    let numbers = release.strip_suffix(&*flavour.suffix(arch))?.strip_suffix('-')?;
    numbers.split(['.', '-']).map(|number| number.parse().ok()).collect()
}

/// One line of `modprobe --show-depends`; none for a driver that is built in.
fn parse_insmod(line: &str) -> Option<Module> {
    let (file, parameters) = line.strip_prefix("insmod ")?.split_once(".ko")?;
    Some(Module { file: PathBuf::from(format!("{file}.ko")), parameters: parameters.trim().to_owned() })
}

#[cfg(test)]
mod tests;
