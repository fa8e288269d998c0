//! A VMM outside of the workspace, built from the crates as they are published: packaged, unpacked, and resolved anew.

use std::fs;
use std::path::{Path, PathBuf};

use super::binaries::{self, Binary};
use super::lock_file;
use crate::{Context, Error, Result, paths, process};

/// Its tests need no more of the debug information than the lines in a panic's trace, and are built once: it is faster so.
const WORKSPACE: &str = "[workspace]\nresolver = \"3\"\nmembers = [\"vmm\", \"examples\"]\n
[profile.dev]\ndebug = \"line-tables-only\"\nincremental = false\n";

/// Where all of it is, its target folder included, which is kept.
fn folder() -> PathBuf {
    paths::target().join("consumer")
}

/// The manifest of the VMM in the repository.
pub fn manifest() -> PathBuf {
    paths::root().join("tests/consumer/Cargo.toml")
}

/// The crates as they are published, and a workspace that has them from nowhere else.
pub struct Packaged {
    crates: Vec<Package>,
    manifest: PathBuf,
    /// What says where the packages are.
    config: PathBuf,
}

impl Packaged {
    /// For cargo: that workspace, and all packages.
    pub fn words(&self) -> Vec<String> {
        let packages = self.crates.iter().flat_map(|package| ["--package".to_owned(), package.name.clone()]);
        self.workspace().into_iter().chain(packages).collect()
    }

    fn workspace(&self) -> [String; 4] {
        let [manifest, config] =
            [&self.manifest, &self.config].map(|path| path.to_string_lossy().into_owned());
        ["--manifest-path".to_owned(), manifest, "--config".to_owned(), config]
    }
}

/// Packages every crate. The VMM and the examples are a workspace that uses the packages.
pub fn package() -> Result<Packaged> {
    let crates = pack()?;
    let mut patch = "[patch.crates-io]\n".to_owned();
    for package in &crates {
        let place = folder().join("packages").join(&package.folder);
        sync(&package.unpacked(), &place)?;
        patch += &format!("{} = {{ path = {:?} }}\n", package.name, place);
    }
    let config = folder().join("patch.toml");
    fs::write(&config, patch).context(config.display())?;

    // The VMM and the examples are the members of a workspace of their own, without a lock file.
    let source = staging().join("workspace");
    copy(manifest().parent().unwrap_or(Path::new(".")), &source.join("vmm"))?;
    copy(&paths::root().join("examples"), &source.join("examples"))?;
    write(&source.join("Cargo.toml"), WORKSPACE.as_bytes())?;
    let workspace = folder().join("workspace");
    sync(&source, &workspace)?;

    Ok(Packaged { crates, manifest: workspace.join("Cargo.toml"), config })
}

/// Builds the VMM's tests and the published examples from packages of every crate. Fails too if there is more than one
/// version of a crate of rust-vmm.
pub fn build() -> Result<Vec<Binary>> {
    let packaged = package()?;
    let (words, target) = (packaged.workspace(), folder().join("target"));
    let target = target.to_string_lossy();
    let more = ["--quiet", "--all-targets", "--target-dir", &target];
    let words = words.iter().map(String::as_str).chain(more).collect::<Vec<_>>();
    let binaries = binaries::build(&words)?;
    let lock = packaged.manifest.with_extension("lock");
    lock_file::one_version_each(&lock)?;
    let lock = fs::read_to_string(&lock).context(lock.display())?;
    match packaged.crates.iter().find(|package| !is_patched(&lock, &package.name)) {
        Some(package) => {
            Err(Error::new(format!("the consumer was built without the package {}", package.name)))
        }
        None => Ok(binaries),
    }
}

/// What is unpacked and copied before it is compared with what was there.
fn staging() -> PathBuf {
    folder().join("staging")
}

/// Leaves out the packages of the workspace that are not published.
pub const NOT_PUBLISHED: &[&str] = &[
    "--exclude=xtask",
    "--exclude=ossature-examples",
    "--exclude=ossature-fuzz",
    "--exclude=ossature-measured",
];

/// A crate that was packaged.
struct Package {
    name: String,
    /// Its folder in the package, which carries the version.
    folder: String,
}

impl Package {
    fn unpacked(&self) -> PathBuf {
        staging().join(&self.folder)
    }
}

/// Packages all crates and unpacks them.
fn pack() -> Result<Vec<Package>> {
    let (packed, staging) = (paths::target().join("package"), staging());
    // What an earlier run has left is not ours.
    for folder in [&packed, &staging] {
        if folder.exists() {
            fs::remove_dir_all(folder).context(folder.display())?;
        }
    }
    fs::create_dir_all(&staging).context(staging.display())?;
    let mut cargo = process::command("cargo");
    cargo.args(["package", "--no-verify", "--allow-dirty", "--quiet", "--workspace"]);
    cargo.args(NOT_PUBLISHED);
    process::output(cargo.current_dir(paths::root()))?;
    let mut packages = Vec::new();
    for file in fs::read_dir(&packed).context(packed.display())?.flatten().map(|entry| entry.path()) {
        let (Some("crate"), Some(folder)) =
            (file.extension().and_then(|it| it.to_str()), file.file_stem().and_then(|it| it.to_str()))
        else {
            continue;
        };
        let mut tar = process::command("tar");
        process::output(tar.arg("-xzf").arg(&file).arg("-C").arg(&staging))?;
        packages.push(Package { name: name(folder).to_owned(), folder: folder.to_owned() });
    }
    packages.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(packages)
}

/// The name in a name with a version, such as `ossature-core-0.1.0-rc.1`.
fn name(with_version: &str) -> &str {
    let starts_version = |at: &usize| with_version[at + 1..].starts_with(|c: char| c.is_ascii_digit());
    let version = with_version.match_indices('-').map(|(at, _)| at).find(starts_version);
    version.map_or(with_version, |at| &with_version[..at])
}

/// A lock file has the package, and not from the registry.
fn is_patched(lock: &str, name: &str) -> bool {
    let mut packages = lock.split("[[package]]");
    let name = format!("\nname = \"{name}\"\n");
    packages.any(|package| package.contains(&name) && !package.contains("\nsource = "))
}

/// The files in `folder` and below, by their paths in it.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(inner) = folders.pop() {
        let folder = folder.join(&inner);
        for entry in fs::read_dir(&folder).context(folder.display())? {
            let entry = entry.context(folder.display())?;
            let path = inner.join(entry.file_name());
            let is_folder = entry.file_type().context(folder.display())?.is_dir();
            if is_folder { folders.push(path) } else { files.push(path) }
        }
    }
    Ok(files)
}

/// Copies the sources of a package; what cargo has made there is none.
fn copy(from: &Path, to: &Path) -> Result<()> {
    for file in files(from)? {
        if !file.starts_with("target") && file != Path::new("Cargo.lock") {
            write(&to.join(&file), &read(&from.join(&file))?)?;
        }
    }
    Ok(())
}

/// Makes `to` the same as `from`. Files that are the same already keep their times, so that cargo builds again only
/// what has changed.
fn sync(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).context(to.display())?;
    for file in files(to)?.iter().filter(|file| !from.join(file).exists()) {
        fs::remove_file(to.join(file)).context(to.join(file).display())?;
    }
    for file in files(from)? {
        let (contents, place) = (read(&from.join(&file))?, to.join(&file));
        if fs::read(&place).ok().as_ref() != Some(&contents) {
            write(&place, &contents)?;
        }
    }
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).context(file.display())
}

fn write(file: &Path, contents: &[u8]) -> Result<()> {
    let folder = file.parent().unwrap_or(file);
    fs::create_dir_all(folder).context(folder.display())?;
    fs::write(file, contents).context(file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_from_a_name() {
        assert_eq!(name("ossature-0.1.0"), "ossature");
        assert_eq!(name("ossature-rust-vmm-1.0.0-rc.1"), "ossature-rust-vmm");
        assert_eq!(name("ossature"), "ossature");
    }

    #[test]
    fn a_crate_of_the_registry_is_not_the_package() {
        let lock = "[[package]]\nname = \"ours\"\nversion = \"1.0.0\"\n\n\
            [[package]]\nname = \"theirs\"\nversion = \"1.0.0\"\nsource = \"registry+https://example.org\"\n";
        assert!(is_patched(lock, "ours"));
        assert!(!is_patched(lock, "theirs"));
        assert!(!is_patched(lock, "our"));
    }

    #[test]
    fn what_is_the_same_is_left_alone_and_the_rest_is_as_in_the_source() {
        let folder = std::env::temp_dir().join(format!("ossature-sync-{}", std::process::id()));
        let (from, to) = (folder.join("from"), folder.join("to"));
        for (file, contents) in [("a", "same"), ("b/c", "new"), ("d", "more")] {
            write(&from.join(file), contents.as_bytes()).unwrap();
        }
        for (file, contents) in [("a", "same"), ("b/c", "old"), ("e", "gone")] {
            write(&to.join(file), contents.as_bytes()).unwrap();
        }
        let time = |file: &str| fs::metadata(to.join(file)).unwrap().modified().unwrap();
        let before = time("a");
        sync(&from, &to).unwrap();
        let mut found = files(&to).unwrap();
        found.sort();
        assert_eq!(found, ["a", "b/c", "d"].map(PathBuf::from));
        assert_eq!(read(&to.join("b/c")).unwrap(), b"new");
        assert_eq!(time("a"), before);
        fs::remove_dir_all(&folder).unwrap();
    }
}
