//! The SMBIOS tables against a golden file, and as Debian's `dmidecode` reads them.
//!
//! A wanted change of the tables: run with `UPDATE_GOLDEN=1` and look at what `dmidecode --from-dump` shows.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests, too, may panic

use std::fs;
use std::path::Path;
use std::process::Command;

use ossature_boot::x86_64::smbios::Smbios;

/// Tables for address 0 are what `dmidecode --dump-bin` writes: the entry point, and at byte 32 the structures.
fn dump(smbios: &Smbios) -> Vec<u8> {
    smbios.tables(0, 0x7ff0).unwrap()
}

/// A machine with something in every field.
fn everything() -> Smbios {
    Smbios::new()
        .manufacturer("ACME")
        .product("Rocket")
        .version("Mark 2")
        .serial("ds=nocloud")
        .sku("R-2")
        .family("Vehicles")
        .uuid("00112233-4455-6677-8899-aabbccddeeff".parse().unwrap())
        .oem_string("first")
        .oem_string("io.systemd.credential:a=b")
}

#[test]
fn g8_the_tables_are_the_golden_ones() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/smbios.bin");
    let found = dump(&everything());
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &found).unwrap();
    }
    assert!(fs::read(&path).unwrap() == found, "{} differs", path.display());
}

#[test]
fn g8_dmidecode_reads_what_was_meant_and_finds_nothing_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let decode = |smbios: &Smbios| {
        let file = dir.path().join("dump");
        fs::write(&file, dump(smbios)).unwrap();
        // It is where root looks for programs.
        let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
        let output = Command::new("sh")
            .args(["-c", "exec dmidecode --from-dump \"$0\""])
            .arg(&file)
            .env("PATH", path)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && errors.is_empty(),
            "dmidecode (Debian has it as a package): {errors}"
        );
        String::from_utf8(output.stdout).unwrap()
    };
    let text = decode(&everything());
    for line in [
        "SMBIOS 3.3.0 present.",
        "Vendor: Ossature",
        "Release Date: 01/01/2026",
        "System is a virtual machine",
        "Manufacturer: ACME",
        "Product Name: Rocket",
        "Version: Mark 2",
        "Serial Number: ds=nocloud",
        "UUID: 00112233-4455-6677-8899-aabbccddeeff",
        "Wake-up Type: Power Switch",
        "SKU Number: R-2",
        "Family: Vehicles",
        "String 1: first",
        "String 2: io.systemd.credential:a=b",
        "End Of Table",
    ] {
        assert!(text.lines().any(|found| found.trim() == line), "{line:?} is not in {text}");
    }
    let text = decode(&Smbios::new());
    for line in [
        "Manufacturer: Ossature",
        "Product Name: Virtual Machine",
        "Serial Number: Not Specified",
        "UUID: Not Settable",
    ] {
        assert!(text.lines().any(|found| found.trim() == line), "{line:?} is not in {text}");
    }
    for wrong in ["OUT OF SPEC", "BAD INDEX", "broken", "truncated", "Wrong", "Invalid"] {
        assert!(!text.contains(wrong), "{text}");
    }
}
