//! Files of working sets, whole and damaged.

use std::fs;

use super::*;

fn set() -> WorkingSet {
    WorkingSet { snapshot: 0x1234_5678_9abc, chunks: vec![7, 3, 1 << 19] }
}

#[test]
fn a_set_is_read_as_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap.ws");
    set().save(&path).unwrap();
    assert_eq!(WorkingSet::open(&path).unwrap(), set());
    let other = WorkingSet { chunks: Vec::new(), ..set() };
    other.save(&path).unwrap();
    assert_eq!(WorkingSet::open(&path).unwrap(), other);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    // What is something else stays.
    fs::write(&path, b"something else").unwrap();
    assert!(matches!(set().save(&path), Err(SnapshotError::Taken { .. })));
    let error = WorkingSet::open(&path).unwrap_err();
    assert!(matches!(error.reason(), SnapshotError::WorkingSet { .. }), "{error}");
    assert!(error.to_string().starts_with(&format!("{}: ", path.display())), "{error}");
    assert!(matches!(WorkingSet::open(folder.path().join("none")), Err(SnapshotError::File { .. })));
}

#[test]
fn d2_damaged_sets_are_refused() {
    let bytes = set().to_bytes();
    for len in 0..bytes.len() {
        assert!(WorkingSet::from_bytes(&bytes[..len]).is_err(), "{len}");
    }
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        assert!(WorkingSet::from_bytes(&damaged).is_err(), "{bit}");
    }
    // With a right checksum: another number of chunks, and a part of one.
    let sealed = |mut bytes: Vec<u8>| {
        bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
        WorkingSet::from_bytes(&bytes)
    };
    let body = &bytes[..bytes.len() - 4];
    assert_eq!(sealed(body.to_vec()).unwrap(), set());
    for count in [0, 1, 2, 4, u8::MAX] {
        let mut other = body.to_vec();
        other[12] = count;
        assert!(sealed(other).is_err(), "{count}");
    }
    assert!(sealed(body[..body.len() - 1].to_vec()).is_err());
    assert!(sealed([body, &[0]].concat()).is_err());
}
