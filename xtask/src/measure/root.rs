//! A root folder in memory with all that the VMMs open, so that none of them waits for a disk, or for the host's files
//! where those come over a network file system. In a mount namespace of its own: nobody else sees it.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Context, Result, packages, process};

/// What every dynamically linked program needs without opening it.
const INTERPRETERS: &[&str] = &["/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"];
/// What is the kernel's in there too.
const MOUNTED: &[&str] = &["dev", "proc", "sys"];
/// Folders that programs expect.
const EMPTY: &[&str] = &["etc", "run", "tmp", "var/empty", "var/tmp", "bin"];
/// Where busybox is, in the root folder.
const BUSYBOX: &str = "/bin/busybox";

/// Unmounts what is mounted in the root folder below `work`.
///
/// # Errors
/// Something is still mounted: the folder is not to be removed.
pub fn unmount(work: &Path) -> Result<()> {
    let mounted = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    for name in MOUNTED {
        let place = work.join("root").join(name).to_string_lossy().into_owned();
        if mounted.lines().any(|line| line.split(' ').nth(4) == Some(&place)) {
            process::output(process::command("umount").args(["--lazy", &place]))?;
        }
    }
    Ok(())
}

/// The folder.
#[derive(Debug)]
pub struct Root {
    folder: PathBuf,
}

impl Root {
    /// A root folder without programs, below `work`, which is in memory.
    pub fn new(work: &Path) -> Result<Root> {
        let root = Root { folder: work.join("root") };
        for name in MOUNTED.iter().chain(EMPTY) {
            let place = root.folder.join(name);
            fs::create_dir_all(&place).context(place.display())?;
        }
        for name in MOUNTED {
            let mut mount = process::command("mount");
            mount.args(["--rbind", &format!("/{name}")]).arg(root.folder.join(name));
            process::output(&mut mount)?;
            // What is unmounted below stays mounted elsewhere.
            let mut slave = process::command("mount");
            process::output(slave.arg("--make-rslave").arg(root.folder.join(name)))?;
        }
        let busybox = packages::busybox()?;
        let to = root.place(Path::new(BUSYBOX));
        fs::copy(&busybox, &to).context(to.display())?;
        INTERPRETERS.iter().for_each(|file| root.add(Path::new(file)));
        Ok(root)
    }

    /// Copies a file of the host's, unless it is there. What is not copied is missed by who opens it.
    pub fn add(&self, file: &Path) {
        let is_mounted = MOUNTED.iter().any(|name| file.starts_with(Path::new("/").join(name)));
        let place = self.place(file);
        if is_mounted || !file.is_file() || place.exists() {
            return;
        }
        if let Some(folder) = place.parent() {
            let _ = fs::create_dir_all(folder).and_then(|()| fs::copy(file, &place));
        }
    }

    /// The command that runs another one in there.
    pub fn words(&self, command: &[String]) -> Vec<String> {
        let busybox = self.place(Path::new(BUSYBOX)).to_string_lossy().into_owned();
        let folder = self.folder.to_string_lossy().into_owned();
        [busybox, "chroot".to_owned(), folder].into_iter().chain(command.iter().cloned()).collect()
    }

    /// A command that does nothing.
    pub fn nothing(&self) -> Vec<String> {
        self.words(&[BUSYBOX.to_owned(), "true".to_owned()])
    }

    fn place(&self, file: &Path) -> PathBuf {
        self.folder.join(file.strip_prefix("/").unwrap_or(file))
    }
}
