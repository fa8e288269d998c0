//! Kernels that are not Linux, from Debian's packages: downloaded into the target folder and unpacked there, never
//! installed.

use std::fs;
use std::path::{Path, PathBuf};

use crate::{Context, Result, packages, paths, process};

/// Each package, and a file of it that is used.
const PACKAGES: &[(&str, &str)] = &[
    ("memtest86+", MEMTEST),
    ("ipxe", IPXE),
    ("grub-xen-bin", "usr/lib/grub/i386-xen_pvh/kernel.img"),
    ("grub-common", "usr/bin/grub-mkimage"),
    ("libdevmapper1.02.1", "lib/x86_64-linux-gnu/libdevmapper.so.1.02.1"),
];
const MEMTEST: &str = "boot/memtest86+x64.bin";
const IPXE: &str = "boot/ipxe.lkrn";

/// memtest86+: a bzImage that has a 64-bit entry point and nothing to unpack.
pub fn memtest() -> PathBuf {
    folder().join("root").join(MEMTEST)
}

/// iPXE: a bzImage that is entered in real mode.
pub fn ipxe() -> PathBuf {
    folder().join("root").join(IPXE)
}

/// GRUB for Xen's PVH guests: a 32-bit ELF file. On another hypervisor, its first words on Xen's debug console (I/O port
/// 0xe9) are that it finds no Xen.
pub fn grub_pvh() -> PathBuf {
    folder().join("grub-pvh.elf")
}

fn folder() -> PathBuf {
    paths::target().join("foreign")
}

/// Downloads and unpacks what is not there, and makes GRUB's image.
///
/// # Errors
/// The host is not a Debian, or a download fails.
pub fn fetch() -> Result<()> {
    let (folder, root) = (folder(), folder().join("root"));
    fs::create_dir_all(&root).context(root.display())?;
    for (package, file) in PACKAGES {
        if !root.join(file).exists() {
            unpack(package, &folder, &root)?;
        }
    }
    if grub_pvh().exists() {
        return Ok(());
    }
    let part = folder.join("grub-pvh.part");
    let mut mkimage = process::command(root.join("usr/bin/grub-mkimage"));
    mkimage.env("LD_LIBRARY_PATH", root.join("lib/x86_64-linux-gnu"));
    mkimage.args(["-O", "i386-xen_pvh", "-p", "/", "-d"]).arg(root.join("usr/lib/grub/i386-xen_pvh"));
    process::run(mkimage.arg("-o").arg(&part))?;
    fs::rename(&part, grub_pvh()).context(grub_pvh().display())
}

fn unpack(package: &str, folder: &Path, root: &Path) -> Result<()> {
    let file = packages::download(package, folder)?;
    process::run(process::command("dpkg").arg("-x").arg(&file).arg(root))?;
    fs::remove_file(&file).context(file.display())
}
