//! Programs of the host's that have too many libraries for an initial RAM file system: a disk has them.

use std::fs;
use std::path::Path;

use xtask::process;
use xtask::tree::Tree;

use super::Guest;

/// The paths of the libraries that a program needs: none if it is a static one.
pub fn libraries(program: &Path) -> Vec<String> {
    let output = process::command("ldd").arg(program).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() || said.contains("not a dynamic executable"), "{said}");
    let list = String::from_utf8_lossy(&output.stdout);
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(str::to_owned);
    list.lines().filter_map(path).collect()
}

impl Guest {
    /// Gives the guest a read-only disk, its next one and therefore `device`, with programs of the host's and their
    /// libraries. Before the guest's commands, it is mounted as /mnt, and `chroot /mnt PROGRAM` sees the guest's
    /// devices and a writable /tmp.
    pub fn tools(self, device: &str, programs: &[&str]) -> Self {
        let mut tree = Tree::new();
        for folder in ["/dev", "/proc", "/sys", "/tmp"] {
            tree.directory(folder);
        }
        let mut bytes = 0;
        for program in programs {
            let libraries = libraries(Path::new(program));
            for path in libraries.iter().map(String::as_str).chain([*program]) {
                bytes += fs::metadata(path).unwrap().len();
                tree.copy(path, Path::new(path)).unwrap();
            }
        }
        let image = self.folder.path().join("tools.img");
        tree.write_ext4(&image, (bytes >> 20) + 16).unwrap();
        let mount = format!(
            "mount -t ext4 -o ro {device} /mnt
            for folder in dev proc sys; do mount --bind /$folder /mnt/$folder; done
            mount -t tmpfs tmp /mnt/tmp"
        );
        self.disk(&image, ",readonly,id=tools").run("tools", &mount)
    }
}
