//! Machines whose memory comes when it is touched, of the scripted hypervisor: the guest and devices are this process's
//! threads.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::mpsc;
use std::time::Instant;

use ossature_memory::{Backing, RamConfig};

use super::*;
use crate::machine::control::Control;
use crate::machine::{BuildError, BuildErrors, Machine, MachineBuilder, OnReset, Snapshot};
use crate::scripted::{Script, Scripted};

const RAM: u64 = 16 << 20;
const LIMIT: Duration = Duration::from_secs(60);

/// Memory with zeros between what is not: chunks 0, 2, 3 and 6 are there, of 2 only one page.
fn memory() -> Vec<u8> {
    let mut bytes = vec![0; RAM as usize];
    let mut number = 1u32;
    for range in [0..1 << 20, 0x40_5000..0x40_6000, 6 << 20..8 << 20, 0xc0_0000..0xc1_0000] {
        for byte in &mut bytes[range] {
            number = number.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            *byte = (number >> 24) as u8;
        }
    }
    bytes
}

/// A snapshot of such memory.
fn saved() -> File {
    let machine = Machine::builder("saved").memory(RamConfig::new(RAM));
    let machine = machine.build(&Scripted::new([Script::new()])).unwrap();
    machine.ram().dma().write(GuestAddress(0), &memory()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    machine.snapshot(folder.path().join("guest.snap")).unwrap();
    File::options().read(true).write(true).open(folder.path().join("guest.snap")).unwrap()
}

fn build(builder: MachineBuilder) -> Result<Machine, BuildErrors> {
    builder.build(&Scripted::new([Script::new()]))
}

fn restored(snapshot: Snapshot) -> Machine {
    build(Machine::builder("restored").restore(snapshot)).unwrap()
}

/// Compares all memory with what it should be.
#[track_caller]
fn check(machine: &Machine, expected: &[u8]) {
    let mut bytes = vec![0; RAM as usize];
    machine.ram().dma().read(GuestAddress(0), &mut bytes).unwrap();
    let other = bytes.iter().zip(expected).position(|(byte, expected)| byte != expected);
    assert_eq!(other, None);
}

fn read(machine: &Machine, addr: u64) -> u8 {
    machine.ram().dma().read_obj::<u8>(GuestAddress(addr)).unwrap()
}

#[track_caller]
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LIMIT, "{what}");
        thread::yield_now();
    }
}

/// What is read of a file, and what fails.
struct Watched {
    file: File,
    reads: Reads,
    /// From which offset on reads fail.
    fails: Option<(u64, Failure)>,
}

#[derive(Clone, Copy)]
enum Failure {
    Error,
    Panic,
}

impl SnapshotSource for Watched {
    fn size(&mut self) -> io::Result<u64> {
        self.file.size()
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        lock(&self.reads).push((offset, bytes.len()));
        match self.fails.filter(|(from, _)| offset >= *from) {
            Some((_, Failure::Error)) => Err(io::Error::other("the wire is cut")),
            Some((_, Failure::Panic)) => panic!("the source is buggy"),
            None => self.file.fetch(offset, bytes),
        }
    }
}

type Reads = Arc<Mutex<Vec<(u64, usize)>>>;

fn watched(file: File) -> (Watched, Reads) {
    let reads = Arc::new(Mutex::new(Vec::new()));
    (Watched { file, reads: Arc::clone(&reads), fails: None }, reads)
}

#[test]
fn memory_is_read_when_it_is_touched_and_zeros_never() {
    let (source, reads) = watched(saved());
    let snapshot = Snapshot::from_source(source).unwrap();
    let start = snapshot.header.memory;
    reads.lock().unwrap().clear();
    let machine = restored(snapshot);
    let progress = |machine: &Machine| machine.memory_progress().unwrap().unwrap();
    assert_eq!(progress(&machine).faults, 0);
    let expected = memory();
    // The middle of a chunk, more of it, zeros in it, and zeros that are far from everything.
    for addr in [0x70_1234, 0x60_0000, 0x7f_ffff, 0xe0_0000] {
        assert_eq!(read(&machine, addr), expected[addr as usize], "{addr:#x}");
    }
    assert_eq!(*reads.lock().unwrap(), [(start + (6 << 20), 2 << 20)]);
    let all_but_one = MemoryProgress { faults: 1, fetched: 2 << 20, missing: 6 << 20, prefetching: false };
    // What was touched comes first, and the rest of the chunk after it.
    until("the chunk comes", || progress(&machine) == all_but_one);
    check(&machine, &expected);
    let all = MemoryProgress { faults: 4, fetched: 8 << 20, missing: 0, prefetching: false };
    until("all comes", || progress(&machine) == all);
    assert_eq!(reads.lock().unwrap().len(), 4);
    check(&machine, &expected);
}

#[test]
fn a_guest_and_devices_find_their_memory() {
    let expected = memory();
    let snapshot = Snapshot::from_file(saved()).unwrap().on_demand();
    snapshot.verify_memory().unwrap();
    let mut guest = Script::new();
    for addr in [0xc0_ff00, 0x10, 0x40_5000] {
        guest = guest.ram_expect(GuestAddress(addr), &expected[addr as usize..addr as usize + 16]);
        guest = guest.ram_write(GuestAddress(addr), b"written");
    }
    let scripted = Scripted::new([guest]);
    let machine = Machine::builder("restored").restore(snapshot).build(&scripted).unwrap();
    machine.start().unwrap();
    // Others at the same time.
    let readers: Vec<_> = (0..4)
        .map(|n| {
            let (dma, expected) = (machine.ram().dma(), expected.clone());
            thread::spawn(move || {
                for at in (n * 4096 + 64..RAM).step_by(4 * 4096) {
                    let mut bytes = [0; 1000];
                    dma.read(GuestAddress(at), &mut bytes).unwrap();
                    assert!(bytes == expected[at as usize..at as usize + 1000], "{at:#x}");
                }
            })
        })
        .collect();
    until("the guest's end", || scripted.remaining() == 0);
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(machine.outcome(), None);
    let mut expected = expected;
    for at in [0xc0_ff00, 0x10, 0x40_5000] {
        expected[at..at + 7].copy_from_slice(b"written");
    }
    check(&machine, &expected);
    // A slot that is added is memory as any.
    machine.ram().add_slot(0x1_0000_0000, 4 << 20, &Backing::Anonymous).unwrap();
    assert_eq!(read(&machine, 0x1_0030_0000), 0);
}

#[test]
fn what_is_discarded_is_zero_whether_it_has_come_or_not() {
    let page = host_page_size() as u64;
    let machine = restored(Snapshot::from_file(saved()).unwrap().on_demand());
    let mut expected = memory();
    // One has come, of the others a part is discarded that has not, once across a boundary.
    assert_eq!(read(&machine, 3), expected[3]);
    for (addr, len) in [(0, page), (0x40_5000 / page * page, page), (0x7f_0000, 0x2_0000), (0x60_0000, page)]
    {
        machine.ram().dma().discard(GuestAddress(addr), len).unwrap();
        expected[addr as usize..(addr + len) as usize].fill(0);
    }
    for addr in [0, 0x60_0000] {
        assert_eq!(read(&machine, addr), 0);
    }
    check(&machine, &expected);
    // Again, of what has come, while others read.
    let dma = machine.ram().dma();
    let discarder = thread::spawn(move || {
        for addr in (6 << 20..8 << 20).step_by(page as usize) {
            dma.discard(GuestAddress(addr), page).unwrap();
        }
    });
    for addr in (6 << 20..8 << 20).step_by(512) {
        let (byte, was) = (read(&machine, addr), expected[addr as usize]);
        assert!(byte == 0 || byte == was, "{addr:#x}");
    }
    discarder.join().unwrap();
    expected[6 << 20..8 << 20].fill(0);
    check(&machine, &expected);
}

/// A machine whose vCPU reads memory at 8 MiB - 4 KiB, and how it ends.
fn outcome(source: impl SnapshotSource + 'static) -> Outcome {
    let snapshot = Snapshot::from_source(source).unwrap();
    let guest = Script::new().ram_expect(GuestAddress(0x7f_f000), &[1]);
    let machine = Machine::builder("restored").restore(snapshot).build(&Scripted::new([guest])).unwrap();
    // What is intact comes.
    assert_eq!(read(&machine, 5), memory()[5]);
    let waits = machine.ram().dma();
    machine.start().unwrap();
    let outcome = machine.wait_timeout(LIMIT).unwrap().unwrap();
    // Nobody waits for ever, neither now nor when the machine is gone.
    let _ = waits.read_obj::<u8>(GuestAddress(0x60_0000)).unwrap();
    let _ = waits.read_obj::<u8>(GuestAddress(0xc0_0000)).unwrap();
    drop(machine);
    let _ = waits.read_obj::<u8>(GuestAddress(0x40_5000)).unwrap();
    outcome
}

#[test]
fn d2_a_tampered_chunk_is_refused_when_it_is_touched() {
    let file = saved();
    let start = Snapshot::from_file(file.try_clone().unwrap()).unwrap().header.memory;
    let at = start + 0x6a_bcde;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    let Outcome::Failed { part, reason } = outcome(file) else { panic!() };
    assert_eq!(part, "memory");
    assert_eq!(reason, "it is damaged: guest memory at 0x600000 has a wrong checksum");
}

#[test]
fn a_source_that_fails_or_panics_ends_the_machine_by_name() {
    let cases =
        [(Failure::Error, "cannot be read: the wire is cut"), (Failure::Panic, "the source is buggy")];
    for (failure, expected) in cases {
        let file = saved();
        let start = Snapshot::from_file(file.try_clone().unwrap()).unwrap().header.memory;
        let (source, _) = watched(file);
        let outcome = outcome(Watched { fails: Some((start + (6 << 20), failure)), ..source });
        let text = outcome.to_string();
        assert!(text.starts_with("memory ") && text.ends_with(expected), "{text}");
        assert_eq!(matches!(outcome, Outcome::Panicked { .. }), matches!(failure, Failure::Panic));
    }
}

#[test]
fn memory_that_a_device_misses_while_the_machine_is_built_is_an_error() {
    let (source, _) = watched(saved());
    let snapshot = Snapshot::from_source(source).unwrap();
    let start = snapshot.header.memory;
    let source = Watched { fails: Some((start, Failure::Error)), ..watched(saved()).0 };
    // It is fetched while the machine is built, or soon after.
    let snapshot = Snapshot::from_source(source).unwrap().prefetch_all();
    let built = build(Machine::builder("restored").restore(snapshot));
    let text = match built {
        Ok(machine) => {
            until("the end", || machine.outcome().is_some());
            assert!(machine.start().is_err());
            machine.outcome().unwrap().to_string()
        }
        Err(mut errors) => match errors.0.pop() {
            Some(BuildError::Snapshot(error @ SnapshotError::OnDemand { .. })) => error.to_string(),
            other => panic!("{other:?}"),
        },
    };
    assert!(text.ends_with("guest memory at 0x0 cannot be read: the wire is cut"), "{text}");
}

#[test]
fn a_machine_whose_memory_has_not_come_is_saved_and_reset() {
    let machine = Machine::builder("restored").on_reset(OnReset::Restart);
    let machine = machine.restore(Snapshot::from_file(saved()).unwrap().on_demand());
    let guest = Script::new();
    let machine = machine.build(&Scripted::new([guest])).unwrap();
    machine.start().unwrap();
    let file = tempfile::tempfile().unwrap();
    machine.pause().unwrap().snapshot_to(&file).unwrap();
    check(&restored(Snapshot::from_file(file).unwrap()), &memory());

    let machine = restored(Snapshot::from_file(saved()).unwrap().on_demand());
    machine.start().unwrap();
    assert_eq!(read(&machine, 5), memory()[5]);
    machine.reset().unwrap();
    check(&machine, &vec![0; RAM as usize]);
    machine.stop().unwrap();
}

#[test]
fn the_next_machine_finds_the_working_set() {
    let file = saved();
    let open = || Snapshot::from_file(file.try_clone().unwrap()).unwrap().on_demand();
    let machine = restored(open());
    for addr in [0xc0_0000, 9, 0xc0_1000, 0x40_5000] {
        read(&machine, addr);
    }
    let set = machine.working_set().unwrap().unwrap();
    assert_eq!((&set.chunks[..], set.bytes()), (&[6, 0, 2][..], 6 << 20));
    // Other machines have none.
    let plain = restored(Snapshot::from_file(file.try_clone().unwrap()).unwrap());
    assert_eq!((plain.working_set().unwrap(), plain.memory_progress().unwrap()), (None, None));

    let machine = restored(open().prefetch(set.clone()).unwrap());
    let progress = || machine.memory_progress().unwrap().unwrap();
    until("all of it comes", || !progress().prefetching);
    for addr in [0xc0_0000, 9, 0xc0_1000, 0x40_5000] {
        read(&machine, addr);
    }
    let expected = MemoryProgress { faults: 0, fetched: 6 << 20, missing: 2 << 20, prefetching: false };
    assert_eq!(progress(), expected);
    check(&machine, &memory());
    assert_eq!(machine.working_set().unwrap().unwrap().chunks, [6, 0, 2, 3]);

    let refused = |set| open().prefetch(set).unwrap_err().to_string();
    let other = WorkingSet { snapshot: set.snapshot + 1, ..set.clone() };
    assert_eq!(refused(other), "its working set: it is of another snapshot");
    let twice = WorkingSet { chunks: vec![0, 1, 0], ..set.clone() };
    assert_eq!(refused(twice), "its working set: it has some memory twice");
    let beyond = WorkingSet { chunks: vec![0, (RAM / CHUNK) as u32], ..set };
    assert_eq!(refused(beyond), "its working set: it has memory that the snapshot has not");
}

#[test]
fn whoever_waits_for_all_memory_is_told_that_the_machine_has_ended() {
    /// Memory that does not come before the gate is open.
    struct Held(File, mpsc::Receiver<()>);

    impl SnapshotSource for Held {
        fn size(&mut self) -> io::Result<u64> {
            self.0.size()
        }

        fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
            if bytes.len() as u64 == CHUNK {
                let _ = self.1.recv();
            }
            self.0.fetch(offset, bytes)
        }
    }

    let (gate, held) = mpsc::channel();
    let machine = restored(Snapshot::from_source(Held(saved(), held)).unwrap());
    let handle = machine.handle();
    let finish = thread::spawn(move || {
        let pager = |control: &mut Control| Ok(control.pager.as_mut().unwrap().finish());
        handle.shared.control("save", pager).unwrap()
    });
    machine.handle().stop();
    let error = finish.join().unwrap().unwrap_err();
    assert!(matches!(error, SnapshotError::Interrupted { .. }), "{error}");
    drop(gate);
    // What is still to come comes.
    check(&machine, &memory());
}

#[test]
fn a_source_is_let_go_when_all_has_come() {
    let (source, reads) = watched(saved());
    let machine = restored(Snapshot::from_source(source).unwrap().prefetch_all());
    until("all comes", || Arc::strong_count(&reads) == 1);
    let progress = machine.memory_progress().unwrap().unwrap();
    assert_eq!((progress.missing, progress.prefetching), (0, false));
    check(&machine, &memory());
}

#[test]
fn memory_that_others_see_is_copied_and_checked() {
    let (source, reads) = watched(saved());
    let snapshot = Snapshot::from_source(source).unwrap();
    let builder = Machine::builder("restored").memory(RamConfig::new(RAM).backing(Backing::Memfd));
    let machine = build(builder.restore(snapshot)).unwrap();
    assert_eq!(Arc::strong_count(&reads), 1);
    assert_eq!(machine.memory_progress().unwrap(), None);
    check(&machine, &memory());
}
