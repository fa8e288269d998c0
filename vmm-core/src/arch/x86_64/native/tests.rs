use super::*;

/// Leaves of a Xeon 8375C (Ice Lake) as the processor has them, in part.
fn intel(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0, _) => [0x1b, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        (4, 0) => [0xfc00_4121, 0x02c0_003f, 0x3f, 0],
        (4, 1) => [0xfc00_4122, 0x01c0_003f, 0x3f, 0],
        (4, 2) => [0xfc00_4143, 0x04c0_003f, 0x3ff, 0],
        (4, 3) => [0xfc0f_c163, 0x02c0_003f, 0x1_1fff, 4],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0002, _) => [0x6574_6e49, 0x2952_286c, 0x6f65_5820, 0x2952_286e],
        (0x8000_0003, _) => [0x616c_5020, 0x756e_6974, 0x3338_206d, 0x2043_3537],
        (0x8000_0004, _) => [0x2055_5043, 0x2e32_2040, 0x4730_3039, 0x7a48],
        (0x8000_0006, _) => [0, 0, 0x0100_6040, 0],
        _ => [0; 4],
    }
}

/// Leaves of an EPYC 7R13 (Milan) as the processor has them, in part.
fn amd(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0, _) => [0x10, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0x8000_0000, _) => [0x8000_0023, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        (0x8000_0002, _) => [0x2044_4d41, 0x4359_5045, 0x3152_3720, 0x3834_2033],
        (0x8000_0003, _) => [0x726f_432d, 0x7250_2065, 0x7365_636f, 0x2072_6f73],
        (0x8000_0004, _) => [0x2020_2020, 0x2020_2020, 0x2020_2020, 0x20_2020],
        (0x8000_0005, _) => [0xff40_ff40, 0xff40_ff40, 0x2008_0140, 0x2008_0140],
        (0x8000_0006, _) => [0x4800_6400, 0x6800_6400, 0x0200_6140, 0x0200_9140],
        (0x8000_001d, 0) => [0x4121, 0x01c0_003f, 0x3f, 0],
        (0x8000_001d, 3) => [0x3_c163, 0x03c0_003f, 0x7fff, 1],
        (0x8000_001d, 1 | 2) => [0x4143, 0x01c0_003f, 0x3ff, 2],
        _ => [0; 4],
    }
}

fn name(entries: &[kvm_cpuid_entry2]) -> String {
    let registers = NAME_AND_CACHES[..3].iter().flat_map(|leaf| find(entries, *leaf, 0));
    let bytes: Vec<_> = registers.flat_map(u32::to_le_bytes).filter(|byte| *byte != 0).collect();
    String::from_utf8(bytes).unwrap()
}

fn find(entries: &[kvm_cpuid_entry2], leaf: u32, index: u32) -> [u32; 4] {
    let mut found = entries.iter().filter(|entry| (entry.function, entry.index) == (leaf, index));
    let entry = found.next().expect("a leaf");
    assert!(found.next().is_none(), "{leaf:#x}.{index} twice");
    [entry.eax, entry.ebx, entry.ecx, entry.edx]
}

/// What KVM gives: the names and some caches are zeros.
fn supported(last: u32, flags: u32) -> Vec<kvm_cpuid_entry2> {
    let zeros = (0x8000_0002..=0x8000_0005).map(|leaf| entry(leaf, 0, 0, [0; 4]));
    let mut entries = vec![entry(0, 0, 0, [2, 1, 2, 3]), entry(0x8000_0000, 0, 0, [last, 0, 0, 0])];
    entries.push(entry(0x8000_0001, 0, 0, [0, 0, flags, 0]));
    entries.extend(zeros);
    entries
}

#[test]
fn g7_intel_has_its_name_and_its_caches() {
    let mut entries = supported(0x8000_0001, 0);
    complete(&mut entries, intel);
    assert_eq!(name(&entries), "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.900GHz");
    assert_eq!(find(&entries, 0x8000_0006, 0), intel(0x8000_0006, 0));
    assert_eq!((find(&entries, 4, 3), find(&entries, 4, 4)), (intel(4, 3), [0; 4]), "four caches and an end");
    assert!(entries.iter().filter(|entry| entry.function == 4).count() == 5);
    assert_eq!((find(&entries, 0, 0)[0], find(&entries, 0x8000_0000, 0)[0]), (4, 0x8000_0006));
}

#[test]
fn g7_amd_has_its_name_and_its_caches() {
    let mut entries = supported(0x8000_0021, TOPOLOGY_EXTENSIONS);
    complete(&mut entries, amd);
    assert_eq!(name(&entries).trim_end(), "AMD EPYC 7R13 48-Core Processor");
    assert_eq!(find(&entries, 0x8000_0005, 0), amd(0x8000_0005, 0));
    assert_eq!(find(&entries, 0x8000_001d, 3), amd(0x8000_001d, 3));
    assert_eq!(find(&entries, 0x8000_0000, 0)[0], 0x8000_0021, "as before");
    let mut without = supported(0x8000_0021, 0);
    complete(&mut without, amd);
    assert!(!without.iter().any(|entry| entry.function == 0x8000_001d), "not without its flag");
}

#[test]
fn what_kvm_gives_stays() {
    let mut entries = supported(0x8000_0006, 0);
    let cache = entry(4, 0, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, [0x121, 7, 7, 7]);
    entries.extend([cache, entry(0x8000_0006, 0, 0, [1, 2, 3, 4])]);
    complete(&mut entries, intel);
    assert_eq!(find(&entries, 0x8000_0006, 0), [1, 2, 3, 4]);
    assert_eq!(entries.iter().filter(|entry| entry.function == 4).count(), 1);
}

#[test]
fn a_processor_without_a_name_gets_none() {
    let mut entries = supported(0x8000_0001, 0);
    let before = entries.clone();
    complete(&mut entries, |leaf, _| if leaf == 0x8000_0000 { [0x8000_0001, 0, 0, 0] } else { [0; 4] });
    assert_eq!(&entries[3..], &before[3..]);
}

#[test]
fn the_end_of_an_endless_list_is_ours() {
    let mut entries = supported(0x8000_0001, 0);
    complete(&mut entries, |_, _| [u32::MAX; 4]);
    assert_eq!(entries.iter().filter(|entry| entry.function == 4).count(), MAX_CACHES as usize);
}
