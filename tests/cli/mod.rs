//! Runs `microvm` and the other examples as a user does, with kernels of a few instructions.
#![allow(dead_code)] // each test binary uses what it needs

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// The example, which cargo builds beside the tests.
pub fn microvm() -> PathBuf {
    example("microvm")
}

pub fn example(name: &str) -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    let profile = exe.ancestors().nth(2).unwrap();
    let path = profile.join("examples").join(name);
    assert!(path.exists(), "{} is missing: cargo build --examples", path.display());
    path
}

pub fn run(command: &mut Command) -> (i32, String) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    (output.status.code().unwrap_or(-1), text)
}

/// Runs with `args`; expects this exit code and all of `parts` in what it says.
#[track_caller]
pub fn refuses(args: &[&str], code: i32, parts: &[&str]) {
    let (got, text) = run(Command::new(microvm()).args(args));
    assert_eq!(got, code, "{args:?}: {text}");
    for part in parts {
        assert!(text.contains(part), "{args:?}: {part:?} is not in {text:?}");
    }
}

/// A file in a folder that goes away with the test.
pub struct Files(pub TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn with(&self, name: &str, bytes: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

/// The smallest ELF that is a kernel: one page at 1 MiB, entered there.
pub fn elf(machine: u16) -> Vec<u8> {
    kernel(machine, &[0xf4; 16])
}

/// The same with this code.
pub fn kernel(machine: u16, code: &[u8]) -> Vec<u8> {
    let length = code.len() as u64;
    let mut image = Vec::new();
    image.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    image.extend(2_u16.to_le_bytes()); // executable
    image.extend(machine.to_le_bytes());
    image.extend(1_u32.to_le_bytes());
    image.extend(0x10_0000_u64.to_le_bytes()); // entry
    image.extend(64_u64.to_le_bytes()); // program headers
    image.extend(0_u64.to_le_bytes());
    image.extend(0_u32.to_le_bytes());
    image.extend([64_u16, 56, 1, 64, 0, 0].map(u16::to_le_bytes).concat());
    image.extend([1_u32, 5].map(u32::to_le_bytes).concat()); // load, read and execute
    image.extend([0x1000_u64, 0x10_0000, 0x10_0000, length, length, 0x1000].map(u64::to_le_bytes).concat());
    image.resize(0x1000, 0);
    image.extend(code);
    image
}

pub const X86_64: u16 = 62;
pub const AARCH64: u16 = 183;
