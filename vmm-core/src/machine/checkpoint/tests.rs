use std::time::{Duration, UNIX_EPOCH};

use ossature_legacy::{I8042, Rtc};
use ossature_memory::vm_memory::GuestAddress;
use ossature_memory::{Backing, RamConfig, host_page_size};

use super::*;
use crate::arch::testing::registers_at;
use crate::machine::{Machine, MachineBuilder};
use crate::scripted::{Script, Scripted};

const MIB: u64 = 1 << 20;

fn builder() -> MachineBuilder {
    let clock = || UNIX_EPOCH + Duration::from_secs(1 << 30);
    Machine::builder("checkpoint").memory(RamConfig::new(6 * MIB)).device(Rtc::with_clock("rtc", clock))
}

/// A machine that runs, with something in its memory.
fn machine() -> Machine {
    let machine = builder().build(&Scripted::new([Script::new()])).unwrap();
    write(&machine, 0x1000, 1);
    write(&machine, 5 * MIB, 2);
    machine.start().unwrap();
    machine
}

fn write(machine: &Machine, addr: u64, value: u8) {
    machine.ram().dma().write_obj(GuestAddress(addr), value).unwrap();
}

fn memory(machine: &Machine) -> Vec<u8> {
    let mut bytes = vec![0; machine.ram().size() as usize];
    machine.ram().slots().fold(0, |at, slot| {
        let end = at + slot.size as usize;
        machine.ram().dma().read(GuestAddress(slot.guest_addr), &mut bytes[at..end]).unwrap();
        end
    });
    bytes
}

#[test]
fn memory_vcpus_and_devices_go_back_as_often_as_asked() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = RamConfig::new(6 * MIB).backing(backing);
        let machine = builder().memory(ram).build(&Scripted::new([Script::new()])).unwrap();
        machine.ram().add_slot(64 * MIB, 3 * MIB, &Backing::Anonymous).unwrap();
        write(&machine, 0x1000, 1);
        write(&machine, 66 * MIB, 2);
        machine.start().unwrap();
        let paused = machine.pause().unwrap();
        paused.vcpus().set_registers(0, registers_at(1)).unwrap();
        paused.resume().unwrap();
        let mut checkpoint = machine.checkpoint().unwrap();
        let before = memory(&machine);
        for round in 0..20_u8 {
            // Over data, into zeros next to it, into a chunk that is zero, across chunks, and into the other slot.
            let end = 2 * MIB - 1;
            for addr in [0x1000, 0x1fff + u64::from(round), 3 * MIB, 66 * MIB, 67 * MIB - 1] {
                write(&machine, addr, 100 + round);
            }
            machine.ram().dma().write(GuestAddress(end), &[round; 9000]).unwrap();
            let paused = machine.pause().unwrap();
            paused.vcpus().set_registers(0, registers_at(7)).unwrap();
            assert!(memory(&machine) != before);
            paused.resume().unwrap();
            machine.reset_to(&mut checkpoint).unwrap();
            assert_eq!(machine.state(), LifecycleState::Running);
            assert!(memory(&machine) == before, "round {round}");
            assert_eq!(machine.pause().unwrap().vcpus().registers(0).unwrap(), registers_at(1));
        }
        assert!(checkpoint.collect().is_ok() && checkpoint.dirty.is_empty(), "what is undone is clean");
    }
}

#[test]
fn a_paused_machine_stays_paused_and_one_of_many_resets_tells_its_followers() {
    let machine = machine();
    let mut checkpoint = machine.checkpoint().unwrap();
    let paused = machine.pause().unwrap();
    machine.reset_to(&mut checkpoint).unwrap();
    assert_eq!(machine.state(), LifecycleState::Paused);
    paused.resume().unwrap();
    assert_eq!(machine.state(), LifecycleState::Running);
    let mut events = machine.events();
    assert!(std::iter::from_fn(|| events.try_next()).any(|event| event == MachineEvent::Reset));
}

#[test]
fn what_was_discarded_comes_back() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = RamConfig::new(6 * MIB).backing(backing);
        let machine = builder().memory(ram).build(&Scripted::new([Script::new()])).unwrap();
        write(&machine, 0x1000, 1);
        machine.start().unwrap();
        let mut checkpoint = machine.checkpoint().unwrap();
        let before = memory(&machine);
        machine.ram().dma().discard(GuestAddress(0), 4 * host_page_size() as u64).unwrap();
        assert!(memory(&machine) != before);
        machine.reset_to(&mut checkpoint).unwrap();
        assert!(memory(&machine) == before);
        // So does all of it after a reset.
        machine.reset().unwrap();
        assert!(memory(&machine) != before);
        machine.reset_to(&mut checkpoint).unwrap();
        assert!(memory(&machine) == before);
    }
}

#[test]
fn memory_that_came_or_went_is_refused_and_so_are_devices() {
    let machine = machine();
    let mut checkpoint = machine.checkpoint().unwrap();
    write(&machine, 0x1000, 9);
    let slot = machine.ram().add_slot(64 * MIB, MIB, &Backing::Anonymous).unwrap();
    write(&machine, 64 * MIB, 9);
    let error = machine.reset_to(&mut checkpoint).unwrap_err();
    assert!(matches!(error, SnapshotError::OtherSlots), "{error}");
    assert_eq!(machine.state(), LifecycleState::Running, "nothing has changed");
    machine.ram().remove_slot(slot).unwrap();
    machine.add_device(I8042::new("second")).unwrap();
    let error = machine.reset_to(&mut checkpoint).unwrap_err();
    match &error {
        SnapshotError::OtherDevices { missing, extra } => {
            assert_eq!((&missing[..], &extra[..]), (&[][..], &["second".to_owned()][..]));
        }
        error => panic!("{error}"),
    }
    assert_eq!(memory(&machine)[0x1000], 9, "nothing has changed");
    machine.remove_device("second").unwrap();
    machine.reset_to(&mut checkpoint).unwrap();
    assert_eq!(memory(&machine)[0x1000], 1);
}

#[test]
fn a_checkpoint_is_of_one_machine_and_there_is_one_at_a_time() {
    let (machine, other) = (machine(), machine());
    let mut checkpoint = machine.checkpoint().unwrap();
    assert!(matches!(other.reset_to(&mut checkpoint), Err(SnapshotError::OtherMachine)));
    let error = machine.checkpoint().unwrap_err().to_string();
    assert!(error.contains("already logged"), "{error}");
    assert_eq!(machine.state(), LifecycleState::Running);
    drop(checkpoint);
    let mut checkpoint = machine.checkpoint().unwrap();
    machine.reset_to(&mut checkpoint).unwrap();
    machine.stop().unwrap();
    let error = machine.reset_to(&mut checkpoint).unwrap_err().to_string();
    assert!(error.contains("stopped"), "{error}");
    drop(machine);
    assert!(matches!(other.reset_to(&mut checkpoint), Err(SnapshotError::OtherMachine)));
}

#[test]
fn a_machine_that_is_restored_has_its_snapshot_for_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let saved = machine();
    let mut own = saved.checkpoint_at(&path).unwrap();
    let before = memory(&saved);
    write(&saved, 0x1000, 9);
    saved.reset_to(&mut own).unwrap();
    assert!(memory(&saved) == before);
    drop(saved);
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let ram = RamConfig::new(6 * MIB).backing(backing);
        let snapshot = Snapshot::open(&path).unwrap();
        let restored = builder().memory(ram).restore(snapshot);
        let (machine, mut checkpoint) =
            restored.build_with_checkpoint(&Scripted::new([Script::new()])).unwrap();
        // Also what is written before the start.
        write(&machine, 0x1000, 8);
        machine.start().unwrap();
        for addr in [0x1000, 3 * MIB, 5 * MIB] {
            write(&machine, addr, 9);
            machine.reset_to(&mut checkpoint).unwrap();
            assert!(memory(&machine) == before, "{addr:#x}");
        }
    }
    // A new machine is where it begins.
    let (machine, mut checkpoint) = builder().build_with_checkpoint(&Scripted::new([Script::new()])).unwrap();
    write(&machine, 0x1000, 9);
    machine.start().unwrap();
    machine.reset_to(&mut checkpoint).unwrap();
    assert!(memory(&machine).iter().all(|byte| *byte == 0));
}

#[test]
fn ranges_are_added_to_others() {
    let mut ranges = vec![0..2, 6..8, 20..24];
    add(&mut ranges, [2..3, 5..7, 10..11, 21..22].into_iter());
    assert_eq!(ranges, [0..3, 5..8, 10..11, 20..24]);
    add(&mut ranges, [].into_iter());
    assert_eq!(ranges.len(), 4);
}
