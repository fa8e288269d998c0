//! Windows and NUMA nodes of restored machines: as they were, or refused.

use std::os::unix::fs::FileExt;
use std::sync::mpsc;

use ossature_boot::Platform;
use ossature_bus::{Requires, WindowRequest};
use ossature_legacy::I8042;
use ossature_memory::{GuestMmap, RamConfig};

use super::super::tests::{assembled, file, parts, refusal};
use super::super::{Snapshot, SnapshotError};
use super::*;
use crate::Registers;
use crate::machine::tests::Asks;
use crate::machine::{BuildErrors, Machine, MachineBuilder};
use crate::scripted::{Script, Scripted};

const GIB: u64 = 1 << 30;

/// A device with a window above 4 GiB.
fn bus() -> Asks {
    Asks("bus", Requires::new().window(WindowRequest::memory64("high", 64 * GIB).at_least(GIB)))
}

fn builder() -> MachineBuilder {
    Machine::builder("windows").device(bus()).memory(RamConfig::new(64 << 10))
}

/// On a host whose guests have so many bits of addresses.
fn build(builder: MachineBuilder, bits: u32) -> Result<Machine, BuildErrors> {
    let machine = builder.build(&Scripted::new([Script::new()]).with_address_bits(bits))?;
    machine.start().unwrap();
    Ok(machine)
}

fn save(machine: &Machine) -> Vec<u8> {
    let file = tempfile::tempfile().unwrap();
    machine.pause().unwrap().snapshot_to(&file).unwrap();
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

fn window(bytes: &[u8]) -> RangeInclusive<u64> {
    Snapshot::from_file(file(bytes)).unwrap().shape.all_windows().next().unwrap().clone()
}

/// The same with the window elsewhere.
fn moved(bytes: &[u8], window: RangeInclusive<u64>) -> Vec<u8> {
    let (mut sections, memory) = parts(bytes);
    let mut shape = Shape::load(&sections[ID]).unwrap();
    shape.devices[0].1.windows = vec![window];
    sections.insert(ID.to_owned(), shape.save());
    assembled(&sections, &memory)
}

fn restore(bytes: &[u8], bits: u32) -> Result<Machine, BuildErrors> {
    build(builder().restore(Snapshot::from_file(file(bytes)).unwrap()), bits)
}

/// Restores on hosts with fewer bits and with more.
fn is_restored_where_it_fits(bytes: &[u8]) {
    let window = window(bytes);
    let needs = u64::BITS - window.end().leading_zeros();
    for here in [32, 36, 40, 48] {
        if here < needs {
            let refused = refusal(restore(bytes, here));
            let said = format!(
                "its memory or its devices' windows have addresses of {needs} bits, and guests have {here} on this host"
            );
            assert_eq!(refused.to_string(), said);
        } else {
            let restored = restore(bytes, here).unwrap();
            assert_eq!(self::window(&save(&restored)), window, "on a host with {here} bits");
        }
    }
}

#[test]
fn windows_are_where_they_were_on_hosts_with_other_address_bits() {
    let hosts = [36, 40, 48].map(|bits| save(&build(builder(), bits).unwrap()));
    hosts.iter().for_each(|bytes| is_restored_where_it_fits(bytes));
    // What a host with so many bits has, whatever this architecture does with them.
    for bits in [33, 36, 40, 48] {
        let half = 1 << (bits - 1);
        is_restored_where_it_fits(&moved(&hosts[0], half..=half + half.min(64 * GIB) - 1));
    }
}

#[test]
fn a_device_that_is_added_to_a_restored_machine_minds_its_windows() {
    let bytes = moved(&save(&build(builder(), 48).unwrap()), 32 * GIB..=64 * GIB - 1);
    let restored = restore(&bytes, 48).unwrap();
    restored.add_device(I8042::new("i8042")).unwrap();
    assert_eq!(window(&save(&restored)), 32 * GIB..=64 * GIB - 1);
}

#[test]
fn windows_that_no_machine_of_this_kind_has_are_refused() {
    let bytes = save(&build(builder(), 48).unwrap());
    for window in [
        // Larger than asked for, smaller than what does, half of a half too few.
        0..=128 * GIB - 1,
        128 * GIB..=256 * GIB - 1,
        8 * GIB..=8 * GIB + (GIB >> 1) - 1,
        64 * GIB..=112 * GIB - 1,
        8 * GIB..=8 * GIB,
        // Below 4 GiB.
        2 * GIB..=3 * GIB - 1,
    ] {
        let refused = refusal(restore(&moved(&bytes, window.clone()), 48));
        let expected = match window.start() {
            0 => "its windows of devices: one is where RAM is",
            _ => {
                "device \"bus\" asks for other registers, interrupts or windows than the one in the snapshot"
            }
        };
        assert_eq!(refused.to_string(), expected, "{window:x?}");
    }
    // Not at a multiple of its size.
    let errors = restore(&moved(&bytes, 33 * GIB..=65 * GIB - 1), 48).unwrap_err();
    assert!(errors.to_string().contains("bus"), "{errors}");
    let refused = refusal(restore(&moved(&bytes, u64::MAX - GIB + 1..=u64::MAX), 48));
    assert!(matches!(refused, SnapshotError::AddressBits { needs: 64, here: 48 }), "{refused}");
}

/// Three vCPUs and 64 KiB in two nodes.
fn nodes() -> Numa {
    Numa::new([NumaNode::new(1, 16 << 10), NumaNode::new(2, 48 << 10)]).with_distance(1, 0, 31)
}

fn with_nodes() -> MachineBuilder {
    Machine::builder("nodes").cpus(3).memory(RamConfig::new(64 << 10))
}

fn build_three(builder: MachineBuilder) -> Result<Machine, BuildErrors> {
    let machine = builder.build(&Scripted::new([Script::new(), Script::new(), Script::new()]))?;
    machine.start().unwrap();
    Ok(machine)
}

fn restore_three(builder: MachineBuilder, bytes: &[u8]) -> Result<Machine, BuildErrors> {
    build_three(builder.restore(Snapshot::from_file(file(bytes)).unwrap()))
}

fn nodes_of(bytes: &[u8]) -> Option<Numa> {
    Snapshot::from_file(file(bytes)).unwrap().shape.numa.clone()
}

#[test]
fn the_guest_is_told_of_numa_nodes_and_a_restored_machine_has_them_by_itself() {
    let bytes = save(&build_three(with_nodes().numa(nodes())).unwrap());
    assert_eq!(nodes_of(&bytes), Some(nodes()));
    for builder in [with_nodes(), with_nodes().numa(nodes())] {
        let (tell, told) = mpsc::channel();
        let builder = builder.payload(move |_: &GuestMmap, platform: &Platform| {
            tell.send((platform.numa.clone(), platform.cpus.len()))?;
            Ok(Registers::default())
        });
        let restored = restore_three(builder, &bytes).unwrap();
        assert_eq!(nodes_of(&save(&restored)), Some(nodes()));
        // Tables are written again.
        restored.reset().unwrap();
        assert_eq!(told.try_recv(), Ok((Some(nodes()), 3)));
    }
    let other = with_nodes().numa(nodes().with_distance(0, 1, 32));
    let said = refusal(restore_three(other, &bytes)).to_string();
    assert!(said.contains("other NUMA nodes"), "{said}");
    let without = save(&build_three(with_nodes()).unwrap());
    assert_eq!(nodes_of(&without), None);
    let said = refusal(restore_three(with_nodes().numa(nodes()), &without)).to_string();
    assert!(said.contains("other NUMA nodes"), "{said}");
}

#[test]
fn numa_nodes_of_another_machine_are_refused_with_everything_else_that_is_wrong() {
    let builder = Machine::builder("nodes").cpus(2).memory(RamConfig::new(64 << 10)).numa(nodes());
    let errors = builder.device(bus()).device(bus()).build(&Scripted::new([Script::new(), Script::new()]));
    let said: Vec<String> = errors.unwrap_err().0.iter().map(ToString::to_string).collect();
    assert!(said.iter().any(|said| said.contains("used twice")), "{said:?}");
    let numa = "numa: the NUMA nodes have 3 processors, and the machine has 2";
    assert!(said.iter().any(|said| said == numa), "{said:?}");
}

#[test]
fn d2_states_whose_numa_nodes_are_none_are_refused() {
    let (sections, memory) = parts(&save(&build_three(with_nodes().numa(nodes())).unwrap()));
    let node = |cpus, memory| NumaNode::new(cpus, memory);
    for wrong in [
        Numa::default(),
        Numa::new([node(4, 64 << 10)]),
        Numa::new([node(3, 1)]),
        Numa::new([node(u32::MAX, 16 << 10), node(4, 48 << 10)]),
        Numa::new([node(3, 64 << 10), node(0, 0)]),
        nodes().with_distance(0, 1, 0),
        nodes().with_distance(0, 7, 21),
        Numa::new([node(3, 0)]),
    ] {
        let mut sections = sections.clone();
        let mut shape = Shape::load(&sections[ID]).unwrap();
        shape.numa = Some(wrong.clone());
        sections.insert(ID.to_owned(), shape.save());
        let refused = Snapshot::from_file(file(&assembled(&sections, &memory))).unwrap_err();
        assert!(crate::error_chain(&refused).contains("NUMA nodes"), "{wrong:?}: {refused}");
    }
    // More memory than there is: known once there is a machine.
    let mut sections = sections;
    let mut shape = Shape::load(&sections[ID]).unwrap();
    shape.numa = Some(Numa::new([node(3, 1 << 40)]));
    sections.insert(ID.to_owned(), shape.save());
    let errors = restore_three(with_nodes(), &assembled(&sections, &memory)).unwrap_err();
    assert!(errors.to_string().contains("numa: the NUMA nodes have 0x10000000000 bytes"), "{errors}");
}
