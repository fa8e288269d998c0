//! Where things are: the repository, the target folder and what the commands keep in it.

use std::path::{Path, PathBuf};

use crate::arch::Arch;
use crate::cross;

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

/// Where cargo leaves what is built for an architecture to run and to be measured: release builds, or for another architecture
/// than the host's the profile of what an emulator runs.
pub fn built_for(arch: Arch) -> PathBuf {
    let cross = target().join(arch.facts().target).join(cross::PROFILE);
    // Where this program was built for another architecture than that of the host that built it, so were the others.
    let is_cross = || std::env::current_exe().is_ok_and(|program| program.starts_with(&cross));
    if arch.is_host() && !is_cross() { target().join("release") } else { cross }
}
