//! Compressed files, whole and damaged.

use std::fs;

use super::*;

/// Zeros, what can be compressed, what cannot, and an end within a block.
fn bytes() -> Vec<u8> {
    let mut bytes = vec![0; 5 * BLOCK + 777];
    let mut number = 7u32;
    for (at, byte) in bytes.iter_mut().enumerate().skip(BLOCK) {
        number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = match at / BLOCK {
            1 | 4 => (at / 100) as u8,
            2 | 5 => (number >> 24) as u8,
            _ => 0,
        };
    }
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn packed(bytes: &[u8]) -> Vec<u8> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.pack");
    PackedSnapshot::write(file(bytes), &path).unwrap();
    fs::read(path).unwrap()
}

#[test]
fn any_part_is_read_as_it_was_written() {
    let bytes = bytes();
    let packed = packed(&bytes);
    assert!(packed.len() < 2 * BLOCK + 2000, "{}", packed.len());
    let mut snapshot = PackedSnapshot::from_file(file(&packed)).unwrap();
    assert_eq!(snapshot.size().unwrap(), bytes.len() as u64);
    let parts =
        [(0, bytes.len()), (BLOCK - 1, 2), (2 * BLOCK, BLOCK), (3 * BLOCK + 5, 2 * BLOCK), (bytes.len(), 0)];
    for (offset, len) in parts {
        let mut read = vec![0xee; len];
        snapshot.fetch(offset as u64, &mut read).unwrap();
        assert!(read == bytes[offset..offset + len], "{offset:#x}+{len:#x}");
    }
    for (offset, len) in
        [(bytes.len() as u64, 1), (bytes.len() as u64 - 1, 2), (u64::MAX, 1), (u64::MAX - BLOCK as u64, 8)]
    {
        assert!(snapshot.fetch(offset, &mut vec![0; len]).is_err(), "{offset:#x}");
    }
    let mut empty = PackedSnapshot::from_file(file(&self::packed(&[]))).unwrap();
    assert_eq!(empty.size().unwrap(), 0);
    assert!(empty.fetch(0, &mut [0]).is_err());
}

#[test]
fn damaged_files_are_refused_or_read_as_errors() {
    let bytes = bytes();
    let packed = packed(&bytes);
    for len in (0..200).chain((200..packed.len()).step_by(977)).chain([packed.len() - 1]) {
        assert!(PackedSnapshot::from_file(file(&packed[..len])).is_err(), "{len}");
    }
    // Header and index: each bit.
    for bit in 0..(HEADER + 6 * 4) * 8 {
        let mut damaged = packed.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(PackedSnapshot::from_file(file(&damaged)).is_err(), "{bit}");
    }
    // Blocks have no checksums: what is read is an error or something else, and no panic.
    for at in (HEADER + 6 * 4..packed.len()).step_by(61) {
        let mut damaged = packed.clone();
        damaged[at] ^= 0x81;
        let mut snapshot = PackedSnapshot::from_file(file(&damaged)).unwrap();
        let mut read = vec![0; bytes.len()];
        let same = snapshot.fetch(0, &mut read).is_ok() && read == bytes;
        assert!(!same, "{at}");
    }
}

#[test]
fn a_file_of_another_kind_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("precious");
    fs::write(&path, b"something else").unwrap();
    let error = PackedSnapshot::write(file(&bytes()), &path).unwrap_err();
    assert!(matches!(error, SnapshotError::Taken { .. }), "{error}");
    assert_eq!(fs::read(&path).unwrap(), b"something else");
    for path in [path, folder.path().join("none")] {
        let error = PackedSnapshot::open(&path).err().unwrap().to_string();
        assert!(error.starts_with(&format!("{}: ", path.display())), "{error}");
    }
}
