use ossature_boot::NumaNode;

use super::*;

fn ids(cpus: u32, nodes: &[u32]) -> Vec<u32> {
    let numa = Numa::new(nodes.iter().map(|&cpus| NumaNode::new(cpus, 1 << 30)));
    let topology = Topology::new(cpus, (!nodes.is_empty()).then_some(&numa));
    (0..cpus).map(|index| topology.position(index).apic_id).collect()
}

#[test]
fn without_nodes_an_apic_id_is_an_index() {
    assert_eq!(ids(5, &[]), [0, 1, 2, 3, 4]);
    let last = Topology::new(300, None).position(299);
    assert_eq!(last, Position { apic_id: 299, package: 0, core: 299, cores: 300, core_bits: 9 });
}

#[test]
fn the_packages_of_nodes_begin_at_powers_of_two() {
    assert_eq!(ids(4, &[2, 2]), [0, 1, 2, 3]);
    assert_eq!(ids(6, &[3, 3]), [0, 1, 2, 4, 5, 6]);
    assert_eq!(ids(4, &[1, 3]), [0, 4, 5, 6]);
    assert_eq!(ids(3, &[1, 1, 1]), [0, 1, 2]);
    // A node without processors is no package.
    assert_eq!(ids(3, &[0, 2, 0, 1]), [0, 1, 2]);
}

#[test]
fn cores_count_from_0_in_each_package() {
    let numa = Numa::new([1, 3].map(|cpus| NumaNode::new(cpus, 0)));
    let position = Topology::new(4, Some(&numa)).position(2);
    assert_eq!(position, Position { apic_id: 5, package: 1, core: 1, cores: 3, core_bits: 2 });
}
