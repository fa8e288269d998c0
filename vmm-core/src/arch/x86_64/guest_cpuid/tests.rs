use ossature_boot::{Numa, NumaNode};

use super::super::topology::Topology;
use super::*;

const LAPIC: CpuFeatures = CpuFeatures {
    position: Position { apic_id: 0, package: 0, core: 0, cores: 1, core_bits: 0 },
    lapic: true,
};

/// The vCPU `index` of so many.
fn of(index: u32, cpus: u32) -> CpuFeatures {
    CpuFeatures { position: Topology::new(cpus, None).position(index), ..LAPIC }
}

fn leaf(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
    let [eax, ebx, ecx, edx] = regs;
    kvm_cpuid_entry2 { function, index, flags: 0, eax, ebx, ecx, edx, ..Default::default() }
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
    let mut found = entries.iter().filter(|e| e.function == function && e.index == index);
    let e = found.next().expect("leaf");
    assert!(found.next().is_none(), "leaf {function:#x}.{index} twice");
    [e.eax, e.ebx, e.ecx, e.edx]
}

fn host() -> Vec<kvm_cpuid_entry2> {
    vec![
        leaf(0x0, 0, [0x1f, 1, 2, 3]),
        leaf(0x1, 0, [0xa0671, 0xff10_0800, 0, 0x1789_fbff]),
        leaf(0x4, 0, [0x1c00_4121, 0, 0, 0]),
        leaf(0x4, 3, [0x1c03_c163, 0, 0, 0]),
        leaf(0x4, 4, [0, 0, 0, 0]),
        leaf(0xb, 0, [1, 2, 0x100, 0x77]),
        leaf(0xb, 1, [4, 16, 0x201, 0x77]),
        leaf(0x1f, 0, [1, 2, 0x100, 0x77]),
        leaf(0x8000_0008, 0, [0x3030, 0x1000, 0x700f, 0]),
        leaf(0x8000_001d, 0, [0x4121, 0, 0, 0]),
        leaf(0x8000_001d, 3, [0xc_4163, 0, 0, 0]),
        leaf(0x8000_001e, 0, [0x77, 0x107, 0x302, 9]),
    ]
}

#[test]
fn each_vcpu_has_its_own_apic_id_everywhere() {
    for index in 0..4 {
        let Cpuid { entries: cpuid } = cpuid(&host(), of(index, 4));
        assert_eq!(find(&cpuid, 1, 0)[1] >> 24, index);
        for (leaf, sub) in [(0xb, 0), (0xb, 1), (0xb, 2), (0x1f, 0), (0x1f, 1), (0x1f, 2)] {
            assert_eq!(find(&cpuid, leaf, sub)[3], index);
        }
        assert_eq!(find(&cpuid, 0x8000_001e, 0), [index, index, 0, 0]);
    }
}

#[test]
fn the_topology_is_one_package_of_single_threaded_cores() {
    for (cpus, bits) in [(1, 0), (2, 1), (3, 2), (4, 2), (255, 8)] {
        let Cpuid { entries: cpuid } = cpuid(&host(), of(0, cpus));
        assert_eq!(find(&cpuid, 0xb, 0), [0, 1, 0x100, 0], "{cpus} CPUs");
        assert_eq!(find(&cpuid, 0xb, 1), [bits, cpus, 0x201, 0], "{cpus} CPUs");
        assert_eq!(find(&cpuid, 0xb, 2), [0, 0, 2, 0], "{cpus} CPUs");
        let amd = find(&cpuid, 0x8000_0008, 0)[2];
        assert_eq!((amd & 0xff, amd >> 12 & 0xf), (cpus - 1, bits), "{cpus} CPUs");
        assert_eq!(find(&cpuid, 1, 0)[1] >> 16 & 0xff, (1 << bits).min(0xff), "{cpus} CPUs");
        assert_eq!(find(&cpuid, 1, 0)[3] & HTT != 0, cpus > 1, "{cpus} CPUs");
    }
}

#[test]
fn the_third_cache_level_is_shared_by_the_package_and_the_others_by_nobody() {
    let Cpuid { entries: cpuid } = cpuid(&host(), of(0, 3));
    let sharing = |leaf, sub| find(&cpuid, leaf, sub)[0] >> 14 & 0xfff;
    assert_eq!((sharing(4, 0), sharing(4, 3)), (0, 3));
    assert_eq!((sharing(0x8000_001d, 0), sharing(0x8000_001d, 3)), (0, 3));
    assert_eq!(find(&cpuid, 4, 0)[0] >> 26, 3, "cores of the package");
    assert_eq!(find(&cpuid, 4, 4)[0], 0, "the end of the list stays");
}

#[test]
fn apic_features_follow_the_machine() {
    let ecx = |features| find(&cpuid(&host(), features).entries, 1, 0)[2];
    assert_eq!(ecx(LAPIC), HYPERVISOR | X2APIC | TSC_DEADLINE);
    assert_eq!(ecx(CpuFeatures { lapic: false, ..LAPIC }), HYPERVISOR);
}

#[test]
fn what_the_machine_does_not_choose_is_the_hosts() {
    let Cpuid { entries: cpuid } = cpuid(&host(), of(3, 4));
    assert_eq!(find(&cpuid, 0, 0), [0x1f, 1, 2, 3]);
    assert_eq!(find(&cpuid, 1, 0)[0], 0xa0671);
    assert_eq!(find(&cpuid, 1, 0)[1] & 0xffff, 0x0800);
    assert_eq!(find(&cpuid, 0x8000_0008, 0)[..2], [0x3030, 0x1000]);
}

#[test]
fn a_host_without_extended_topology_leaves_gets_none() {
    let host: Vec<_> = host().into_iter().filter(|e| !is_topology_leaf(e.function)).collect();
    let Cpuid { entries: cpuid } = cpuid(&host, LAPIC);
    assert!(!cpuid.iter().any(|e| is_topology_leaf(e.function)));
}

#[test]
fn g7_cores_of_amd_processors_are_not_threads() {
    let flag = |maker, cpus| {
        let host = [leaf(0, 0, [0xd, maker, 0, 0]), leaf(0x8000_0001, 0, [0, 0, 0xfff | CMP_LEGACY, 0])];
        let cpuid = cpuid(&host, of(0, cpus));
        find(&cpuid.entries, 0x8000_0001, 0)[2] & CMP_LEGACY != 0
    };
    let intel = u32::from_le_bytes(*b"Genu");
    assert_eq!([flag(AMD, 1), flag(AMD, 2), flag(HYGON, 2), flag(intel, 2)], [false, true, true, false]);
}

#[test]
fn each_numa_node_is_a_package_with_a_cache_of_its_own() {
    let numa = Numa::new([1, 3].map(|cpus| NumaNode::new(cpus, 1 << 30)));
    let topology = Topology::new(4, Some(&numa));
    let last = cpuid(&host(), CpuFeatures { position: topology.position(3), ..LAPIC }).entries;
    assert_eq!(find(&last, 0xb, 0), [0, 1, 0x100, 6]);
    assert_eq!(find(&last, 0xb, 1), [2, 3, 0x201, 6]);
    assert_eq!(find(&last, 1, 0)[1] >> 16, 0x0604, "4 ids of a package");
    assert_eq!(find(&last, 0x8000_001e, 0), [6, 2, 1, 0]);
    let first = cpuid(&host(), CpuFeatures { position: topology.position(0), ..LAPIC }).entries;
    assert_eq!(find(&first, 0xb, 1), [2, 3, 0x201, 0]);
    for cpuid in [&first, &last] {
        assert_eq!(find(cpuid, 0x8000_0008, 0)[2] & 0xff, 2, "Linux takes the first one's for all");
        assert_ne!(find(cpuid, 1, 0)[3] & HTT, 0);
        for leaf in [4, 0x8000_001d] {
            assert_eq!(find(cpuid, leaf, 3)[0] >> 14 & 0xfff, 3, "leaf {leaf:#x}");
        }
    }
}
