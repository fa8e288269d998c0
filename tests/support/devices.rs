//! Block devices and file systems of the host's that go with the test. The tests run as root.

use std::fs;
use std::path::{Path, PathBuf};

use xtask::process;

fn run(program: &str, words: &[&str]) -> String {
    let mut command = process::command(program);
    // There is nobody to make nodes of devices but the programs themselves.
    process::text(command.args(words).env("DM_DISABLE_UDEV", "1")).unwrap()
}

/// A block device whose blocks are the bytes of a file.
pub struct LoopDevice(pub PathBuf);

impl LoopDevice {
    /// With blocks of this size.
    pub fn new(file: &Path, block: u32) -> Self {
        let words = ["--find", "--show", "--sector-size", &block.to_string(), file.to_str().unwrap()];
        Self(run("losetup", &words).trim().into())
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        // The test has failed already if this does, here and below.
        let _ = process::output(process::command("losetup").arg("--detach").arg(&self.0));
    }
}

/// A block device some of whose sectors can be neither read nor written.
pub struct BadDisk {
    name: String,
    pub path: PathBuf,
}

impl BadDisk {
    /// `sectors` sectors of another device from `start` on, but for those in `bad`.
    pub fn new(name: &str, over: &LoopDevice, start: u64, sectors: u64, bad: std::ops::Range<u64>) -> Self {
        let device = over.0.display();
        let table = format!(
            "0 {} linear {device} {start}\n{} {} error\n{} {} linear {device} {}",
            bad.start,
            bad.start,
            bad.end - bad.start,
            bad.end,
            sectors - bad.end,
            start + bad.end
        );
        // Tests may run side by side.
        let name = format!("{name}-{}", std::process::id());
        run("dmsetup", &["create", &name, "--table", &table]);
        let path = Path::new("/dev/mapper").join(&name);
        Self { name, path }
    }
}

impl Drop for BadDisk {
    fn drop(&mut self) {
        let mut remove = process::command("dmsetup");
        let _ = process::output(remove.args(["remove", "--retry", &self.name]).env("DM_DISABLE_UDEV", "1"));
    }
}

/// A file system that is mounted.
pub struct Mounted(pub PathBuf);

impl Mounted {
    /// One in memory that holds so many MiB.
    pub fn tmpfs(folder: &Path, mib: u64) -> Self {
        fs::create_dir(folder).unwrap();
        let (size, folder) = (format!("size={mib}M"), folder.to_path_buf());
        run("mount", &["-t", "tmpfs", "-o", &size, "small", folder.to_str().unwrap()]);
        Self(folder)
    }

    /// An ext4 file system that is made on a device.
    pub fn ext4(device: &LoopDevice, folder: &Path) -> Self {
        fs::create_dir(folder).unwrap();
        run("mkfs.ext4", &["-q", device.0.to_str().unwrap()]);
        run("mount", &["-t", "ext4", device.0.to_str().unwrap(), folder.to_str().unwrap()]);
        Self(folder.to_path_buf())
    }

    /// One in memory holds so many MiB from now on.
    pub fn resize(&self, mib: u64) {
        run("mount", &["-o", &format!("remount,size={mib}M"), self.0.to_str().unwrap()]);
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = process::output(process::command("umount").arg("--lazy").arg(&self.0));
    }
}
