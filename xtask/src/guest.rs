//! What guests run: a file system of busybox and kernel modules, whose first process runs a job or
//! offers a shell.
//!
//! A test adds its script as `/job`, and reads the script's output and exit code from the guest's
//! console through [`crate::frame`]. What its kernel command line may say: `guest/init.sh` and `guest/main.sh`.

use std::fs;

use crate::kernels::{Kernel, Module};
use crate::tree::Tree;
use crate::{Context, Result, packages, process};

/// What guests need that Debian's kernels have as modules.
const MODULES: &[&str] = &[
    "virtio_mmio",
    "virtio_pci",
    "virtio_blk",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "vmw_vsock_virtio_transport",
    "ext4",
    "evdev",
    "button",
    "pvpanic-mmio",
];

/// What the power button's handler is called by `acpid` of busybox.
const POWER_BUTTON: &str = "/etc/acpi/PWRF/00000080";

/// A tree of busybox with all its commands, a console, and the folders that Linux mounts things on.
///
/// # Errors
/// As [`packages::busybox`].
pub fn busybox_tree() -> Result<Tree> {
    let program = packages::busybox()?;
    let mut tree = Tree::new();
    for folder in ["/proc", "/sys", "/dev", "/run", "/root", "/tmp", "/mnt", "/new"] {
        tree.directory(folder);
    }
    tree.character_device("/dev/console", 5, 1);
    for name in process::text(process::command(&program).arg("--list"))?.lines() {
        tree.link(&format!("/bin/{name}"), "busybox");
    }
    tree.copy("/bin/busybox", &program)?;
    Ok(tree)
}

/// Adds kernel modules and the list of them that an init script loads: `/etc/modules`.
///
/// # Errors
/// A module cannot be read.
pub fn add_modules(tree: &mut Tree, modules: &[Module], edit: impl Fn(&[u8]) -> &[u8]) -> Result<()> {
    let mut list = String::new();
    for module in modules {
        let name = module.file.file_name().unwrap_or_default().to_string_lossy();
        let place = format!("/lib/{name}");
        let bytes = fs::read(&module.file).context(module.file.display())?;
        tree.file(&place, 0o644, edit(&bytes));
        list.push_str(&format!("{place} {}\n", module.parameters));
    }
    tree.file("/etc/modules", 0o644, list);
    Ok(())
}

/// The tree of a guest with this kernel: an initramfs, or the root of a disk.
///
/// # Errors
/// The kernel lacks a module that guests need, or busybox is missing.
pub fn tree(kernel: &Kernel) -> Result<Tree> {
    let mut tree = tree_without_modules()?;
    add_modules(&mut tree, &kernel.modules(MODULES)?, |module| module)?;
    Ok(tree)
}

/// The tree of a guest whose kernel has its drivers built in.
///
/// # Errors
/// As [`packages::busybox`].
pub fn tree_without_modules() -> Result<Tree> {
    let mut tree = busybox_tree()?;
    tree.file("/etc/modules", 0o644, "");
    tree.file("/init", 0o755, include_str!("guest/init.sh"));
    tree.file("/etc/passwd", 0o644, "root::0:0:root:/root:/bin/sh\n");
    tree.file("/etc/group", 0o644, "root:x:0:\n");
    tree.file("/etc/inittab", 0o644, include_str!("guest/inittab"));
    tree.file("/etc/main", 0o755, include_str!("guest/main.sh"));
    tree.file("/etc/stop", 0o755, include_str!("guest/stop.sh"));
    tree.file(POWER_BUTTON, 0o755, "#!/bin/sh\nexec /etc/stop poweroff\n");
    Ok(tree)
}
