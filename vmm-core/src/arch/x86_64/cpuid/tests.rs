use super::*;

const ONES: CpuidRegisters = CpuidRegisters { eax: 1, ebx: 1, ecx: 1, edx: 1 };

fn cpuid() -> Cpuid {
    let leaf =
        |function, index, flags, eax| kvm_cpuid_entry2 { function, index, flags, eax, ..Default::default() };
    let indexed = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
    Cpuid {
        entries: vec![leaf(0, 0, 0, 0xd), leaf(1, 0, 0, 5), leaf(4, 0, indexed, 1), leaf(4, 1, indexed, 2)],
    }
}

#[test]
fn leaves_are_read_as_the_guest_reads_them() {
    let eax = |leaf, subleaf| cpuid().get(leaf, subleaf).map(|registers| registers.eax);
    assert_eq!(
        [eax(1, 0), eax(1, 7), eax(4, 1), eax(4, 2), eax(2, 0)],
        [Some(5), Some(5), Some(2), None, None]
    );
}

#[test]
fn leaves_are_added_overridden_and_removed() {
    let mut cpuid = cpuid();
    cpuid.set(1, 0, ONES).unwrap();
    cpuid.set(4, 2, ONES).unwrap();
    cpuid.set(7, 0, ONES).unwrap();
    cpuid.update(4, 0, |leaf| leaf.edx = 9).unwrap();
    assert_eq!([cpuid.get(1, 0), cpuid.get(4, 2), cpuid.get(7, 0)], [Some(ONES); 3]);
    assert_eq!(cpuid.get(4, 0).unwrap(), CpuidRegisters { eax: 1, edx: 9, ..Default::default() });
    cpuid.remove(4).unwrap();
    assert_eq!(cpuid.leaves().collect::<Vec<_>>(), [(0, 0), (1, 0), (7, 0)]);
}

#[test]
fn errors_name_the_leaf() {
    let mut cpuid = cpuid();
    assert_eq!(cpuid.remove(9), Err(CpuidError::Missing { leaf: 9, subleaf: 0 }));
    assert_eq!(cpuid.update(4, 5, |_| ()), Err(CpuidError::Missing { leaf: 4, subleaf: 5 }));
    assert_eq!(cpuid.set(1, 1, ONES), Err(CpuidError::NoSubleaves { leaf: 1, subleaf: 1 }));
    let full = (0..).find_map(|n| cpuid.set(0x4000_0000 + n, 0, ONES).err()).unwrap();
    assert!(matches!(full, CpuidError::Full { leaf, max: 256, .. } if leaf == 0x4000_0000 + 252), "{full}");
}

#[test]
fn a_leaf_beyond_the_last_becomes_the_last() {
    let mut cpuid = cpuid();
    cpuid.set(0x14, 0, ONES).unwrap();
    cpuid.set(0x8000_0001, 0, ONES).unwrap();
    assert_eq!(cpuid.get(0, 0).unwrap().eax, 0x14);
    cpuid.set(7, 0, ONES).unwrap();
    assert_eq!(cpuid.get(0, 0).unwrap().eax, 0x14);
}
