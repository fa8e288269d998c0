use proptest::prelude::*;

use super::*;

const ARCH: Architecture = Architecture::X86_64;

fn state<'a>(kind: &'a str, version: u16, payload: &'a [u8]) -> SavedState<'a> {
    SavedState::new(kind, version, payload)
}

fn file(sections: &[(&str, &SavedState<'_>)]) -> Vec<u8> {
    let mut out = Vec::new();
    write(&mut out, ARCH, sections).unwrap();
    out
}

fn two_devices() -> Vec<u8> {
    file(&[("uart", &state("a", 1, b"xyz")), ("", &state("b", 0x203, b""))])
}

/// Gives the header's checksum what it should be.
fn sealed(mut file: Vec<u8>) -> Vec<u8> {
    let checksum = crc32fast::hash(&file[..16]);
    file[16..20].copy_from_slice(&checksum.to_le_bytes());
    file
}

#[test]
fn the_bytes_of_a_file() {
    let crc = |bytes: &[u8]| crc32fast::hash(bytes).to_le_bytes();
    let header = b"OSSATURE\x01\0\x01\0\x02\0\0\0";
    let first = b"\x04uart\x01a\x01\0\x03\0\0\0";
    let second = b"\0\x01b\x03\x02\0\0\0\0";
    let expected = [
        &header[..],
        &crc(header),
        first,
        &crc(b"\x04uart\x01a\x01\0\x03\0\0\0xyz"),
        b"xyz",
        second,
        &crc(second),
    ];
    assert_eq!(two_devices(), expected.concat());
    // The checksum itself, by its published check value.
    assert_eq!(crc(b"123456789"), 0xcbf4_3926_u32.to_le_bytes());
}

#[test]
fn the_header_can_be_read_alone() {
    let file = two_devices();
    let header = Header { architecture: ARCH, sections: 2 };
    assert_eq!(Header::read(&file[..Header::LEN]), Ok(header));
    for len in 0..Header::LEN {
        let refused = Header::read(&file[..len]);
        assert!(matches!(refused, Err(FormatError::Truncated { part: Part::Header, .. })), "{refused:?}");
    }
}

#[test]
fn what_is_appended_leaves_the_bytes_before_it_alone() {
    let mut out = b"before".to_vec();
    write(&mut out, ARCH, &[("uart", &state("a", 1, b"xyz")), ("", &state("b", 0x203, b""))]).unwrap();
    assert_eq!(out, [b"before", &two_devices()[..]].concat());
}

#[test]
fn a_header_of_another_world_is_refused() {
    let with = |at: usize, byte: u8| {
        let mut file = two_devices();
        file[at] = byte;
        StateFile::parse(&sealed(file), ARCH).unwrap_err()
    };
    assert_eq!(with(0, b'o'), FormatError::Magic);
    assert_eq!(with(8, 2), FormatError::Version { found: 2 });
    assert_eq!(with(10, 3), FormatError::UnknownArchitecture { found: 3 });
    assert_eq!(with(13, 4), FormatError::TooMany { found: 1026 });
    let expected = FormatError::Architecture { found: Architecture::Aarch64, expected: ARCH };
    assert_eq!(with(10, 2), expected);
    assert_eq!(with(12, 1), FormatError::Trailing { bytes: 13 });
    assert_eq!(with(12, 3), FormatError::Truncated { part: Part::Section(2), field: "id" });
}

#[test]
fn d2_no_byte_can_be_changed_cut_off_or_added() {
    let file = two_devices();
    for at in 0..file.len() {
        for value in [0, 1, 0xff, file[at].wrapping_sub(1), file[at].wrapping_add(1)] {
            let mut changed = file.clone();
            changed[at] = value;
            assert_eq!(StateFile::parse(&changed, ARCH).is_ok(), changed == file, "{value:#x} at {at}");
        }
        assert!(StateFile::parse(&file[..at], ARCH).is_err(), "cut at {at}");
    }
    let longer = [&file[..], b"\0"].concat();
    assert_eq!(StateFile::parse(&longer, ARCH), Err(FormatError::Trailing { bytes: 1 }));
}

#[test]
fn d2_a_length_is_refused_before_its_bytes_are_looked_for() {
    let mut file = file(&[("u", &state("k", 1, b"xyz"))]);
    let length = Header::LEN + 2 + 2 + 2;
    assert_eq!(file[length], 3);
    file[length + 3] = 0xff;
    let refused = StateFile::parse(&file, ARCH).unwrap_err();
    let len = 0xff00_0003;
    let expected = FormatError::TooLong { part: Part::Section(0), field: "payload", len, max: MAX_PAYLOAD };
    assert_eq!(refused, expected);
}

#[test]
fn d2_two_states_for_one_device_are_refused() {
    let saved = state("k", 1, b"");
    let one = file(&[("u", &saved)]);
    let mut twice = [&one[..], &one[Header::LEN..]].concat();
    twice[12] = 2;
    let duplicate = FormatError::Duplicate { id: "u".into() };
    assert_eq!(StateFile::parse(&sealed(twice), ARCH), Err(duplicate.clone()));
    let mut out = b"before".to_vec();
    assert_eq!(write(&mut out, ARCH, &[("u", &saved), ("v", &saved), ("u", &saved)]), Err(duplicate));
    assert_eq!(out, b"before");
}

#[test]
fn d2_a_name_that_is_not_text_is_refused() {
    let head = b"\x01\xff\x01k\x01\0\0\0\0\0";
    let mut file = file(&[]);
    file[12] = 1;
    let file = [&sealed(file)[..], head, &crc32fast::hash(head).to_le_bytes()].concat();
    let expected = FormatError::NotText { part: Part::Section(0), field: "id" };
    assert_eq!(StateFile::parse(&file, ARCH), Err(expected));
}

#[test]
fn what_could_not_be_read_is_not_written() {
    let refused =
        |id: &str, saved: &SavedState<'_>| write(&mut Vec::new(), ARCH, &[(id, saved)]).unwrap_err();
    let name = "n".repeat(256);
    let too_long = |field, len, max| FormatError::TooLong { part: Part::Section(0), field, len, max };
    assert_eq!(refused(&name, &state("k", 1, b"")), too_long("id", 256, 255));
    assert_eq!(refused("u", &state(&name, 1, b"")), too_long("kind", 256, 255));
    let payload = vec![0; MAX_PAYLOAD + 1];
    assert_eq!(refused("u", &state("k", 1, &payload)), too_long("payload", MAX_PAYLOAD + 1, MAX_PAYLOAD));

    let ids: Vec<_> = (0..=MAX_SECTIONS).map(|n| n.to_string()).collect();
    let saved = state(&name[..255], 1, b"");
    let mut sections: Vec<_> = ids.iter().map(|id| (id.as_str(), &saved)).collect();
    assert_eq!(
        write(&mut Vec::new(), ARCH, &sections),
        Err(FormatError::TooMany { found: MAX_SECTIONS + 1 })
    );
    sections.pop();
    assert_eq!(StateFile::parse(&file(&sections), ARCH).unwrap().iter().len(), MAX_SECTIONS);
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        devices in prop::collection::btree_map(
            ".{0,20}",
            (".{0,20}", any::<u16>(), prop::collection::vec(any::<u8>(), 0..80)),
            0..8,
        ),
    ) {
        let states: Vec<_> = devices
            .iter()
            .map(|(id, (kind, version, payload))| (id.as_str(), state(kind, *version, payload)))
            .collect();
        let sections: Vec<_> = states.iter().map(|(id, state)| (*id, state)).collect();
        let file = file(&sections);
        let parsed = StateFile::parse(&file, ARCH).unwrap();
        prop_assert_eq!(parsed.iter().collect::<Vec<_>>(), sections);
        for (id, state) in &states {
            prop_assert_eq!(parsed.get(id), Some(state));
        }
    }

    /// Behind a header that is right, whatever the sections are.
    #[test]
    fn d2_any_bytes_are_answered(
        bytes in prop::collection::vec(prop_oneof![0u8..4, any::<u8>()], 0..120),
        sections in 0u8..4,
    ) {
        let mut start = file(&[]);
        start[12] = sections;
        let file = [&sealed(start)[..], &bytes].concat();
        let parsed = StateFile::parse(&file, ARCH);
        prop_assert_eq!(parsed.is_ok(), sections == 0 && bytes.is_empty());
    }
}

#[test]
fn ids_that_a_machine_uses_itself_are_reserved() {
    for id in ["", "kvm", "memory", "machine", "vcpu", "vcpu0", "vcpu1023", "cpu3", "ossature.x"] {
        assert!(is_reserved_id(id), "{id}");
    }
    for id in ["com1", "vcpu0x", "vcpu-1", "Kvm", "kvm0", "memory2", "0", "ossature"] {
        assert!(!is_reserved_id(id), "{id}");
    }
}
