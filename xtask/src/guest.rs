//! What guests run: a file system of busybox and kernel modules.

use std::path::PathBuf;

use crate::tree::Tree;
use crate::{Error, Result};

/// The host's statically linked busybox.
///
/// # Errors
/// There is none, or it needs shared libraries, which a guest does not have.
pub fn busybox() -> Result<PathBuf> {
    let program = PathBuf::from("/bin/busybox");
    // A dynamically linked ELF file names its loader.
    let is_static = std::fs::read(&program)
        .is_ok_and(|bytes| !bytes.windows(9).take(4096).any(|window| window == b"ld-linux-"));
    if is_static {
        return Ok(program);
    }
    Err(Error::needs_developer("/bin/busybox is missing or dynamic: please install busybox-static"))
}

/// A tree that holds busybox and a console.
///
/// # Errors
/// As [`busybox`].
pub fn busybox_tree() -> Result<Tree> {
    let mut tree = Tree::new();
    tree.copy("/bin/busybox", &busybox()?)?;
    tree.character_device("/dev/console", 5, 1);
    Ok(tree)
}
