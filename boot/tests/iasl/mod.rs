//! Tables one by one, compared with golden files, and taken apart and put together by ACPICA's own compiler.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing)] // helpers of tests, too, may panic

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The tables by lower-case signature, the RSDP first.
pub fn split(tables: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut found = vec![("rsdp".to_owned(), tables[..36].to_vec())];
    let mut at = 40;
    while at < tables.len() {
        let signature = std::str::from_utf8(&tables[at..at + 4]).unwrap().to_lowercase();
        let len = u32::from_le_bytes(tables[at + 4..at + 8].try_into().unwrap()) as usize;
        found.push((signature, tables[at..at + len].to_vec()));
        at = (at + len).next_multiple_of(8);
    }
    found
}

/// Compares the tables with the golden ones in `folder`, or makes them the golden ones.
pub fn compare_with_golden(folder: &str, tables: &[(String, Vec<u8>)]) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(folder);
    for (name, bytes) in tables {
        let path = golden.join(name).with_extension("bin");
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(&golden).unwrap();
            fs::write(&path, bytes).unwrap();
        }
        assert!(fs::read(&path).unwrap() == *bytes, "{} differs", path.display());
    }
}

/// Runs `iasl` and returns what it said; it has to succeed.
fn iasl(args: &[&str], file: &Path) -> String {
    let output = Command::new("iasl")
        .args(args)
        .arg(file)
        .output()
        .expect("iasl runs (Debian has it in the package acpica-tools)");
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{args:?}: {text}");
    text
}

/// Disassembles and recompiles a table; the compiler has to find nothing wrong and to arrive at the same bytes,
/// but for the checksum and for the compiler's name and version in the header.
pub fn accepted(dir: &Path, name: &str, table: &[u8]) -> PathBuf {
    let binary = dir.join(name).with_extension("dat");
    fs::write(&binary, table).unwrap();
    iasl(&["-d"], &binary);
    let source = binary.with_extension("dsl");
    // Without optimizations, which would shorten what we spell out.
    let report = iasl(&["-oa"], &source);
    assert!(report.contains("Compilation successful. 0 Errors, 0 Warnings, 0 Remarks"), "{report}");
    let compiled = fs::read(binary.with_extension("aml")).unwrap();
    let masked = |table: &[u8]| [&table[..9], &table[10..28], &table[36..]].concat();
    assert!(
        masked(&compiled) == masked(table),
        "{name}: recompiling changes it: {compiled:02x?} {table:02x?}"
    );
    source
}

/// The source of a table, with single spaces.
pub fn words(tables: &[(String, Vec<u8>)], name: &str) -> String {
    let dir = tempfile::tempdir().unwrap();
    let (name, table) = tables.iter().find(|(found, _)| found == name).unwrap();
    let source = fs::read_to_string(accepted(dir.path(), name, table)).unwrap();
    source.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// The values of all fields of this name in a source of [`words`].
pub fn fields(words: &str, name: &str) -> Vec<u64> {
    let name = format!(" {name} : ");
    words
        .split(&name)
        .skip(1)
        .map(|value| u64::from_str_radix(value.split_whitespace().next().unwrap(), 16).unwrap())
        .collect()
}
