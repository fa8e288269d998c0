//! What guests run: a file system of busybox and kernel modules, whose first process runs a job or
//! offers a shell.
//!
//! A test adds its script as `/job`, and reads the script's output and exit code from the guest's
//! console through [`crate::frame`]. What its kernel command line may say: `guest/init.sh` and `guest/main.sh`.

use std::fs;
use std::path::PathBuf;

use crate::arch::Arch;
use crate::kernels::Kernel;
use crate::tree::Tree;
use crate::{Context, Result, packages, port, process};

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
];
/// The same of the devices that only machines of x86_64 have.
const X86_MODULES: &[&str] = &["button", "pvpanic-mmio"];

/// What the power button's handler is called by `acpid` of busybox.
const POWER_BUTTON: &str = "/etc/acpi/PWRF/00000080";

/// A tree of busybox with all its commands, a console, and the folders that Linux mounts things on, for an architecture.
/// Debian builds the same commands into each busybox.
///
/// # Errors
/// As [`packages::busybox`], or the other architecture's cannot be fetched.
pub fn busybox_tree_for(arch: Arch) -> Result<Tree> {
    let host = packages::busybox()?;
    let program = if arch.is_host() { host.clone() } else { port::busybox(arch)? };
    let mut tree = Tree::new();
    for folder in ["/proc", "/sys", "/dev", "/run", "/root", "/tmp", "/mnt", "/new"] {
        tree.directory(folder);
    }
    tree.character_device("/dev/console", 5, 1);
    for name in process::text(process::command(&host).arg("--list"))?.lines() {
        tree.link(&format!("/bin/{name}"), "busybox");
    }
    tree.copy("/bin/busybox", &program)?;
    Ok(tree)
}

/// Adds modules of a kernel, what they need, and the names of all that an init script loads by one `modprobe`: `/etc/modules`.
///
/// # Errors
/// The kernel lacks a module, or one cannot be read.
pub fn add_modules(
    tree: &mut Tree,
    kernel: &Kernel,
    names: &[&str],
    edit: impl Fn(&[u8]) -> &[u8],
) -> Result<()> {
    let folder = format!("/lib/modules/{}", kernel.release);
    let (mut list, mut needs, mut options) = (Vec::new(), String::new(), String::new());
    for module in kernel.modules(names)? {
        let file = module.file.file_name().unwrap_or_default().to_string_lossy();
        let name = file.trim_end_matches(".ko").to_owned();
        let bytes = fs::read(&module.file).context(module.file.display())?;
        tree.file(&format!("{folder}/{file}"), 0o644, edit(&bytes));
        // Each comes behind what it needs.
        needs.push_str(&format!("{file}:\n"));
        if !module.parameters.is_empty() {
            options.push_str(&format!("options {name} {}\n", module.parameters));
        }
        list.push(name);
    }
    tree.file(&format!("{folder}/modules.dep"), 0o644, needs);
    tree.file("/etc/modprobe.conf", 0o644, options);
    tree.file("/etc/modules", 0o644, list.join(" ") + "\n");
    Ok(())
}

/// The tree of a guest with this kernel: an initramfs, or the root of a disk.
///
/// # Errors
/// The kernel lacks a module that guests need, or busybox is missing.
pub fn tree(kernel: &Kernel) -> Result<Tree> {
    tree_with_modules(kernel, &[])
}

/// The same, with more of the kernel's modules, and what they need.
///
/// # Errors
/// As [`tree`].
pub fn tree_with_modules(kernel: &Kernel, more: &[&str]) -> Result<Tree> {
    let mut tree = tree_without_modules_for(kernel.arch)?;
    let more = if kernel.arch == Arch::X86_64 { [more, X86_MODULES].concat() } else { more.to_vec() };
    add_modules(&mut tree, kernel, &[MODULES, &more].concat(), |module| module)?;
    Ok(tree)
}

/// The tree of a guest whose kernel has its drivers built in.
///
/// # Errors
/// As [`packages::busybox`].
pub fn tree_without_modules() -> Result<Tree> {
    tree_without_modules_for(Arch::HOST)
}

/// The same for an architecture.
///
/// # Errors
/// As [`busybox_tree_for`].
pub fn tree_without_modules_for(arch: Arch) -> Result<Tree> {
    let mut tree = busybox_tree_for(arch)?;
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

/// What whole-machine tests' guests have in common, by kernel. Archives of them are made once, and each test adds one of what is
/// its own: to make all of it takes an emulated processor as long as a good part of a guest's boot.
#[derive(Clone, Copy, Debug)]
pub enum Common {
    /// [`tree`].
    Guest,
    /// Busybox, and the drivers of virtio disks. There is no `/init`.
    Disks,
}

/// Where [`write_archives`] leaves one.
pub fn archive(kernel: &Kernel, common: Common) -> PathBuf {
    let name = match common {
        Common::Guest => "guest.cpio",
        Common::Disks => "disks.cpio",
    };
    kernel.folder.join(name)
}

/// Writes the archives of a kernel.
///
/// # Errors
/// As [`tree`].
pub fn write_archives(kernel: &Kernel) -> Result<()> {
    let mut disks = busybox_tree_for(kernel.arch)?;
    add_modules(&mut disks, kernel, &["virtio_mmio", "virtio_pci", "virtio_blk"], |module| module)?;
    for (common, tree) in [(Common::Guest, tree(kernel)?), (Common::Disks, disks)] {
        let file = archive(kernel, common);
        fs::write(&file, tree.to_cpio()).context(file.display())?;
    }
    Ok(())
}
