use super::*;

const X0: RegisterId = RegisterId(KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64);
const V0: RegisterId = RegisterId(0x6040_0000_0010_0054);

fn file(registers: &[(RegisterId, &[u8])]) -> Vec<u8> {
    registers.iter().flat_map(|(id, value)| [&id.0.to_le_bytes(), *value].concat()).collect()
}

#[test]
fn registers_have_names() {
    let names = [
        (MPIDR, "MPIDR_EL1"),
        (system(3, 0, 0, 4, 0), "ID_AA64PFR0_EL1"),
        (system(3, 0, 2, 0, 2), "S3_0_C2_C0_2"),
        (X0, "core register 0x0"),
        (RegisterId(0x6020_0000_0011_0002), "CCSIDR_EL1 of cache 0x2"),
        (RegisterId(0x6030_0000_0014_0000), "firmware register 0x0"),
        (SVE_LENGTHS, "lengths of SVE vectors"),
    ];
    for (id, name) in names {
        assert_eq!(id.to_string(), name);
    }
    assert_eq!(hex(&[0x10, 0x0a, 0, 0]), "0xa10");
    assert_eq!(hex(&[0; 8]), "0x0");
}

#[test]
fn features_are_what_a_guest_has_seen_of_its_processor() {
    let seen = [
        system(3, 0, 0, 0, 0),
        MPIDR,
        system(3, 0, 0, 7, 2),
        system(3, 1, 0, 0, 1),
        system(3, 3, 0, 0, 1),
        RegisterId(0x6020_0000_0011_0002),
        RegisterId(0x6030_0000_0014_0001),
        RegisterId(0x6030_0000_0016_0000),
        SVE_LENGTHS,
    ];
    assert!(seen.iter().all(|id| id.is_feature()));
    // Which cache is shown, SCTLR_EL1, counters, x0 and the first SVE vector.
    let state = [
        system(3, 2, 0, 0, 0),
        system(3, 0, 1, 0, 0),
        COUNTERS[0],
        COUNTERS[1],
        X0,
        RegisterId(0x6080_0000_0015_0000),
    ];
    assert!(!state.iter().any(|id| id.is_feature()));
}

#[test]
fn registers_of_all_sizes_are_bytes_and_back() {
    let bytes = file(&[(X0, &[1; 8]), (V0, &[2; 16]), (SVE_LENGTHS, &[3; 64])]);
    let registers = RegisterFile::from_bytes(&bytes).unwrap();
    assert_eq!(registers.to_bytes(), bytes);
    assert_eq!(registers.get(V0), Some(&[2; 16][..]));
    assert_eq!((registers.get_u64(X0), registers.get_u64(MPIDR)), (Some(0x0101_0101_0101_0101), None));
    assert_eq!(registers.without(|id| id == V0).to_bytes(), file(&[(X0, &[1; 8]), (SVE_LENGTHS, &[3; 64])]));
    // What is no 64-bit register stays as it is.
    let later = registers.increased(&[X0, V0], 0xff);
    assert_eq!(later.get_u64(X0), Some(0x0101_0101_0101_0200));
    assert_eq!(later.get(V0), registers.get(V0));
}

#[test]
fn hostile_registers_are_refused() {
    let bytes = file(&[(X0, &[1; 8]), (V0, &[2; 16])]);
    for end in 0..bytes.len() {
        let whole = end == 0 || end == 16;
        assert_eq!(RegisterFile::from_bytes(&bytes[..end]).is_ok(), whole, "{end}");
    }
    let refused = |registers: &[(RegisterId, &[u8])]| {
        RegisterFile::from_bytes(&file(registers)).unwrap_err().to_string()
    };
    // Twice, and not in order.
    assert!(refused(&[(X0, &[1; 8]), (X0, &[1; 8])]).contains("twice"));
    assert!(refused(&[(V0, &[1; 16]), (X0, &[1; 8])]).contains("not in its place"));
    // Of x86, of no architecture, larger than any.
    for id in [0x2030_0000_0000_0000, 0x0030_0000_0000_0000, 0x6090_0000_0015_0000, u64::MAX] {
        assert!(refused(&[(RegisterId(id), &[0; 512])]).contains(&format!("{id:#x}")));
    }
}

#[test]
fn registers_that_another_has_not_are_left_out() {
    let file = |ids: &[u64]| {
        let bytes =
            ids.iter().flat_map(|id| [(0x6030_0000_0013_c080 + id).to_le_bytes(), id.to_le_bytes()].concat());
        RegisterFile::from_bytes(&bytes.collect::<Vec<_>>()).unwrap()
    };
    let common = |other: &[u64]| file(&[1, 3, 5, 7]).common(&file(other));
    for (other, left) in [
        (&[1, 3, 5, 7][..], &[1, 3, 5, 7][..]),
        (&[0, 1, 2, 3, 4, 5, 6, 7, 8], &[1, 3, 5, 7]),
        (&[3, 4, 7], &[3, 7]),
        (&[0, 2, 8], &[]),
        (&[], &[]),
    ] {
        assert_eq!(common(other).to_bytes(), file(left).to_bytes(), "{other:?}");
    }
}
