//! Where things are: the repository, the target folder and what the commands keep in it.

use std::path::{Path, PathBuf};

use crate::arch::Arch;

/// The repository's root folder.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// The folder that cargo builds into.
pub fn target() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The part of it with what is built for the architecture that this program is built for: where a program was built for
/// another one than that of the host that built it, it finds the others there too.
pub fn built() -> PathBuf {
    let ours = target().join(Arch::HOST.facts().target);
    match std::env::current_exe() {
        Ok(program) if program.starts_with(&ours) => ours,
        _ => target(),
    }
}
