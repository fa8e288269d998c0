//! Machines that are saved while a scripted guest and threads as devices write to their memory all the time.

use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ossature_bus::Device;
use ossature_memory::{Backing, FileBacking, Ram, RamConfig};

use super::super::tests::OnResume;
use super::*;
use crate::machine::{Machine, Outcome, Snapshot, SnapshotError};
use crate::scripted::{Script, Scripted};

const RAM: u64 = 24 << 20;
const LIMIT: Duration = Duration::from_secs(120);

fn machine(config: RamConfig) -> Machine {
    let machine = Machine::builder("live").memory(config).build(&Scripted::new([Script::new()])).unwrap();
    machine.start().unwrap();
    machine
}

fn all(ram: &Ram) -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    ram.dma().read(GuestAddress(0), &mut bytes).unwrap();
    bytes
}

/// Threads that write, and give back, parts of memory until they are told to end. They stop in between while the machine
/// is paused, as devices do.
struct Writers<'a> {
    end: AtomicBool,
    pause: AtomicBool,
    active: AtomicU64,
    writes: AtomicU64,
    ram: &'a Ram,
}

impl Writers<'_> {
    fn work(&self, seed: u64) {
        let dma = self.ram.dma();
        let mut number = seed;
        while !self.end.load(Ordering::SeqCst) {
            self.active.fetch_add(1, Ordering::SeqCst);
            if !self.pause.load(Ordering::SeqCst) {
                number =
                    number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let addr = (number >> 20) % (RAM - 0x2000);
                if number >> 60 == 0 {
                    dma.discard(GuestAddress(addr & !0xfff), 0x1000).unwrap();
                } else {
                    dma.write(GuestAddress(addr), &number.to_le_bytes()).unwrap();
                }
                self.writes.fetch_add(1, Ordering::SeqCst);
            }
            self.active.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Has them stop, does something, and has them go on.
    fn paused<R>(&self, f: impl FnOnce() -> R) -> R {
        self.pause.store(true, Ordering::SeqCst);
        while self.active.load(Ordering::SeqCst) > 0 {
            thread::yield_now();
        }
        let result = f();
        self.pause.store(false, Ordering::SeqCst);
        result
    }
}

#[test]
fn the_image_is_the_memory_of_the_pause_whatever_is_written_since() {
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let machine = machine(RamConfig::new(RAM).backing(backing));
        let writers = Writers {
            end: AtomicBool::new(false),
            pause: AtomicBool::new(false),
            active: AtomicU64::new(0),
            writes: AtomicU64::new(0),
            ram: machine.ram(),
        };
        thread::scope(|scope| {
            for seed in 1..=3 {
                let writers = &writers;
                scope.spawn(move || writers.work(seed));
            }
            for _ in 0..4 {
                let before = writers.writes.load(Ordering::SeqCst);
                while writers.writes.load(Ordering::SeqCst) < before + 2000 {
                    thread::yield_now();
                }
                let file = tempfile::tempfile().unwrap();
                let mut reference = Vec::new();
                let saved = machine.handle().shared.control("save", |control| {
                    Ok(control.save_live_with(
                        &file,
                        None,
                        // Devices stop before their state is saved, and go on with the machine.
                        |arm| {
                            writers.paused(|| {
                                arm();
                                reference = all(machine.ram());
                            });
                        },
                    ))
                });
                let saved = saved.unwrap().unwrap();
                let snapshot = Snapshot::from_file(file).unwrap();
                snapshot.verify_memory().unwrap();
                let restored = Machine::builder("restored").restore(snapshot);
                let restored = restored.build(&Scripted::new([Script::new()])).unwrap();
                assert!(all(restored.ram()) == reference, "{saved:?}");
                assert!(saved.waits > 0, "{saved:?}");
            }
            writers.end.store(true, Ordering::SeqCst);
        });
        assert_eq!(machine.outcome(), None);
    }
}

/// A device that finds work when it goes on, and does it before it says that it has.
fn backlog() -> impl Device {
    OnResume::new(|dma| {
        for at in (0..RAM).step_by(1 << 20) {
            let number: u64 = dma.read_obj(GuestAddress(at)).unwrap();
            dma.write_obj(GuestAddress(at), number + 1).unwrap();
        }
    })
}

#[test]
fn a_device_that_has_work_when_it_goes_on_waits_for_the_copy_and_not_for_ever() {
    let builder = Machine::builder("backlog").memory(RamConfig::new(RAM)).device(backlog());
    let machine = builder.build(&Scripted::new([Script::new()])).unwrap();
    machine.start().unwrap();
    let folder = tempfile::tempdir().unwrap();
    for round in 1..=3u64 {
        let path = folder.path().join(format!("{round}.snap"));
        machine.snapshot_live(&path).unwrap();
        let snapshot = Snapshot::open(&path).unwrap();
        snapshot.verify_memory().unwrap();
        let restored = Machine::builder("restored").restore(snapshot).device(backlog());
        let restored = restored.build(&Scripted::new([Script::new()])).unwrap();
        for at in (0..RAM).step_by(1 << 20) {
            let number = |machine: &Machine| machine.ram().dma().read_obj::<u64>(GuestAddress(at)).unwrap();
            assert_eq!((number(&restored), number(&machine)), (round, round + 1), "{at:#x}");
        }
    }
}

#[test]
fn a_machine_that_ends_meanwhile_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let machine = machine(RamConfig::new(RAM));
    let file = NewFile::create(&path).unwrap();
    let error = machine.handle().shared.control("save", |control| {
        Ok(control.save_live_with(file.file(), None, |arm| {
            arm();
            machine.handle().stop();
        }))
    });
    let error = error.unwrap().unwrap_err();
    assert!(matches!(error, SnapshotError::Machine(_) | SnapshotError::Interrupted { .. }), "{error}");
    drop(file);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    assert_eq!(machine.wait_timeout(LIMIT).unwrap(), Some(Outcome::Stopped));
    machine.ram().dma().write(GuestAddress(0), &[1; 100]).unwrap();
    // Nor is one saved that does not run.
    assert!(matches!(machine.snapshot_live(&path), Err(SnapshotError::Machine(_))));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn a_file_that_cannot_be_written_leaves_the_guest_as_it_was() {
    let machine = machine(RamConfig::new(RAM));
    machine.ram().dma().write(GuestAddress(0x12_3456), b"kept").unwrap();
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("guest.snap"), b"something else").unwrap();
    let error = machine.snapshot_live(folder.path().join("guest.snap")).unwrap_err();
    assert!(matches!(error, SnapshotError::Taken { .. }), "{error}");
    // Open for reading only: memory cannot be written to it.
    let empty = folder.path().join("empty");
    fs::write(&empty, b"").unwrap();
    let file = File::open(&empty).unwrap();
    let saved = machine.handle().shared.control("save", |control| Ok(control.save_live(&file, None)));
    let error = saved.unwrap().unwrap_err();
    assert!(matches!(error, SnapshotError::Io { part: "length", .. }), "{error}");
    assert_eq!(machine.state(), LifecycleState::Running);
    assert_eq!(machine.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x12_3456)).unwrap(), *b"kept");
    machine.ram().dma().write(GuestAddress(0x12_3456), b"more").unwrap();
    machine.snapshot_live(folder.path().join("other.snap")).unwrap();
}

#[test]
fn memory_that_cannot_be_protected_is_refused_by_name_and_memory_on_demand_comes_first() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    let file = tempfile::tempfile().unwrap();
    file.set_len(RAM).unwrap();
    let backing = Backing::File(FileBacking::private(file, 0));
    let refused = machine(RamConfig::new(RAM).backing(backing)).snapshot_live(&path).unwrap_err();
    let expected = "page faults of guest memory that is a private copy of a file cannot be served";
    assert_eq!(refused.to_string(), expected);

    let first = machine(RamConfig::new(RAM));
    first.ram().dma().write(GuestAddress(0x60_0000), b"kept").unwrap();
    first.snapshot_live(&path).unwrap();
    let builder = || Machine::builder("restored");
    let mapped = builder().restore(Snapshot::open(&path).unwrap());
    let mapped = mapped.build(&Scripted::new([Script::new()])).unwrap();
    mapped.start().unwrap();
    let again = folder.path().join("again.snap");
    let refused = mapped.snapshot_live(&again).unwrap_err();
    assert!(refused.to_string().contains("partly a private copy of a file"), "{refused}");

    let lazy = builder().restore(Snapshot::open(&path).unwrap().on_demand());
    let lazy = lazy.build(&Scripted::new([Script::new()])).unwrap();
    lazy.start().unwrap();
    lazy.snapshot_live(&again).unwrap();
    assert_eq!(lazy.memory_progress().unwrap().unwrap().missing, 0);
    let third = builder().restore(Snapshot::open(&again).unwrap());
    let third = third.build(&Scripted::new([Script::new()])).unwrap();
    assert_eq!(third.ram().dma().read_obj::<[u8; 4]>(GuestAddress(0x60_0000)).unwrap(), *b"kept");
    assert!(all(third.ram()) == all(lazy.ram()));
}
