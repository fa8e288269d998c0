//! Memory that comes on demand, and snapshots of a machine that runs, on the host's KVM: a guest sweeps over its memory and
//! writes the number of each write, so that any image of it shows whether it is of one moment.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::print_stderr)] // helpers of tests, too, may panic

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use ossature_boot::Platform;
use ossature_core::machine::{
    Machine, Outcome, RemoteSnapshot, Snapshot, SnapshotSource, WorkingSet, serve_snapshot,
};
use ossature_core::{Kvm, Registers};
use ossature_memory::vm_memory::{Bytes, GuestAddress};
use ossature_memory::{Backing, GuestMmap, RamConfig};

const CODE: u16 = 0x1000;
const RAM: u64 = 16 << 20;
/// What DS, ES, FS and GS reach: the guest writes a number to each of the 16 pages of each.
const SEGMENTS: [u64; 4] = [2 << 20, 4 << 20, 6 << 20, 8 << 20];
const PAGES: u64 = 64;
const LIMIT: Duration = Duration::from_secs(120);

/// Writes the number of each write, one page after the other, for ever.
const GUEST: &[u8] = &[
    0x66, 0x31, 0xdb, // xor ebx, ebx
    0x31, 0xff, // xor di, di
    0x66, 0x43, 0x66, 0x89, 0x1d, // L: inc ebx; mov [di], ebx
    0x66, 0x43, 0x26, 0x66, 0x89, 0x1d, // inc ebx; mov es:[di], ebx
    0x66, 0x43, 0x64, 0x66, 0x89, 0x1d, // inc ebx; mov fs:[di], ebx
    0x66, 0x43, 0x65, 0x66, 0x89, 0x1d, // inc ebx; mov gs:[di], ebx
    0x81, 0xc7, 0x00, 0x10, // add di, 0x1000
    0xeb, 0xe3, // jmp L
];

fn load(memory: &GuestMmap, _: &Platform) -> Result<Registers, ossature_core::machine::PayloadError> {
    memory.write_slice(GUEST, GuestAddress(CODE.into()))?;
    let mut registers = Registers::real_mode(CODE);
    let Registers { ds, es, fs, gs, .. } = &mut registers;
    [ds, es, fs, gs].into_iter().zip(SEGMENTS).for_each(|(segment, base)| segment.base = base);
    Ok(registers)
}

/// A guest that has swept over its memory at least once.
fn sweeping(backing: Backing) -> Machine {
    let machine = Machine::builder("sweeping").memory(RamConfig::new(RAM).backing(backing)).payload(load);
    let machine = machine.build(&Kvm::open().unwrap()).unwrap();
    machine.start().unwrap();
    until(&machine, |machine| number(machine, PAGES - 1) > PAGES);
    machine
}

fn number(machine: &Machine, page: u64) -> u64 {
    let addr = SEGMENTS[(page % 4) as usize] + page / 4 * 0x1000;
    machine.ram().dma().read_obj::<u32>(GuestAddress(addr)).unwrap().into()
}

#[track_caller]
fn until(machine: &Machine, happened: impl Fn(&Machine) -> bool) {
    let start = Instant::now();
    while !happened(machine) {
        assert_eq!(machine.outcome(), None);
        assert!(start.elapsed() < LIMIT, "it does not happen");
        thread::yield_now();
    }
}

/// The number of the last write of a machine that does not run. Fails if its memory is not of one moment.
#[track_caller]
fn last_write(machine: &Machine) -> u64 {
    let numbers: Vec<u64> = (0..PAGES).map(|page| number(machine, page)).collect();
    let last = *numbers.iter().max().unwrap();
    for (page, number) in (0..).zip(numbers) {
        // The last write to this page that is not later.
        let expected = last - (last - 1 - page) % PAGES;
        assert_eq!(number, expected, "page {page}, where the last write is {last}");
    }
    last
}

/// Has a restored machine go on for two sweeps, and checks that it has missed and doubled nothing.
#[track_caller]
fn goes_on(machine: &Machine, from: u64) {
    machine.start().unwrap();
    until(machine, |machine| number(machine, 0) > from + 2 * PAGES);
    let _paused = machine.pause().unwrap();
    last_write(machine);
}

fn restored(snapshot: Snapshot) -> Machine {
    Machine::builder("restored").restore(snapshot).build(&Kvm::open().unwrap()).unwrap()
}

#[test]
fn a_guest_that_writes_all_the_time_is_saved_as_it_was_at_one_moment() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("guest.snap");
    for backing in [Backing::Anonymous, Backing::Memfd] {
        let machine = sweeping(backing);
        let mut before = 0;
        for _ in 0..5 {
            let saved = machine.snapshot_live(&path).unwrap();
            println!("{saved:?}");
            assert!(saved.waits > 0, "{saved:?}");
            let snapshot = Snapshot::open(&path).unwrap();
            snapshot.verify_memory().unwrap();
            let copy = restored(snapshot);
            let last = last_write(&copy);
            assert!(last > before);
            before = last;
            goes_on(&copy, last);
            // The guest has gone on, too.
            until(&machine, |machine| number(machine, 0) > last + PAGES);
        }
        let _paused = machine.pause().unwrap();
        last_write(&machine);
    }
}

/// A snapshot of a guest that sweeps, and the number of its last write.
fn saved() -> (File, u64) {
    let machine = sweeping(Backing::Anonymous);
    let file = tempfile::tempfile().unwrap();
    machine.pause().unwrap().snapshot_to(&file).unwrap();
    let last = last_write(&restored(Snapshot::from_file(file.try_clone().unwrap()).unwrap()));
    (file, last)
}

#[test]
fn a_guest_runs_while_its_memory_comes_from_a_file_or_a_peer() {
    let (file, last) = saved();
    let machine = restored(Snapshot::from_file(file.try_clone().unwrap()).unwrap().on_demand());
    goes_on(&machine, last);
    // What was touched comes first, and the rest of a chunk after it.
    until(&machine, |machine| machine.memory_progress().unwrap().unwrap().missing == 0);
    let progress = machine.memory_progress().unwrap().unwrap();
    // The code, and what each segment reaches.
    assert_eq!((progress.faults, progress.fetched, progress.missing), (5, 10 << 20, 0), "{progress:?}");

    // The next one has it before it is touched.
    let set: WorkingSet = machine.working_set().unwrap().unwrap();
    let next = Snapshot::from_file(file.try_clone().unwrap()).unwrap().on_demand();
    let next = restored(next.prefetch(set).unwrap());
    until(&next, |next| !next.memory_progress().unwrap().unwrap().prefetching);
    goes_on(&next, last);
    assert_eq!(next.memory_progress().unwrap().unwrap().faults, 0);

    let (client, server) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve_snapshot(file, server));
    let machine = restored(Snapshot::from_source(RemoteSnapshot::over(client).unwrap()).unwrap());
    goes_on(&machine, last);
    drop(machine);
    server.join().unwrap().unwrap();
}

#[test]
fn a_guest_whose_working_set_has_come_waits_for_nothing() {
    let (file, _) = saved();
    let open = || Snapshot::from_file(file.try_clone().unwrap()).unwrap().on_demand();
    let sweep = |machine: &Machine| {
        machine.wait_for_prefetch().unwrap();
        let before = machine.memory_progress().unwrap().unwrap();
        assert!(!before.prefetching && before.faults == 0, "{before:?}");
        machine.start().unwrap();
        // Not by its memory: who looks there touches it.
        let writes = |machine: &Machine| {
            let paused = machine.pause().unwrap();
            let writes = paused.vcpus().registers(0).unwrap().rbx;
            paused.resume().unwrap();
            writes
        };
        let first = writes(machine);
        until(machine, |machine| writes(machine) > first + 2 * PAGES);
        machine.memory_progress().unwrap().unwrap().faults
    };
    let lazy = restored(open());
    let faults = sweep(&lazy);
    assert!(faults as usize >= SEGMENTS.len(), "{faults}");
    let set = lazy.working_set().unwrap().unwrap();
    lazy.stop().unwrap();
    let prefetched = restored(open().prefetch(set).unwrap());
    assert_eq!(sweep(&prefetched), 0, "of {faults}");
    prefetched.stop().unwrap();
}

#[test]
fn what_is_read_to_save_a_machine_is_not_what_its_guest_touches() {
    let (file, _) = saved();
    let machine = restored(Snapshot::from_file(file.try_clone().unwrap()).unwrap().on_demand());
    number(&machine, 0);
    let (before, touched) = (machine.memory_progress().unwrap().unwrap(), machine.working_set().unwrap());
    assert!(before.missing > 0, "{before:?}");
    let folder = tempfile::tempdir().unwrap();
    machine.snapshot(folder.path().join("again.snap")).unwrap();
    let progress = machine.memory_progress().unwrap().unwrap();
    assert_eq!((progress.faults, progress.missing), (before.faults, 0), "{progress:?}");
    assert_eq!(machine.working_set().unwrap(), touched);
    Snapshot::open(folder.path().join("again.snap")).unwrap().verify_memory().unwrap();
}

/// A file that cannot be read from an offset on, after a while.
struct Lost(File, u64);

impl SnapshotSource for Lost {
    fn size(&mut self) -> io::Result<u64> {
        SnapshotSource::size(&mut self.0)
    }

    fn fetch(&mut self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        if offset >= self.1 {
            // The vCPU waits in the kernel by now.
            thread::sleep(Duration::from_millis(200));
            return Err(io::Error::other("the wire is cut"));
        }
        self.0.fetch(offset, bytes)
    }
}

#[test]
fn a_vcpu_that_waits_for_memory_that_is_lost_or_damaged_ends_by_name() {
    let (file, _) = saved();
    let length = file.metadata().unwrap().len();
    // Memory is at the end of the file.
    let place = |addr: u64| length - RAM + addr;
    let ends = |source: Box<dyn SnapshotSource>| {
        let machine = restored(Snapshot::from_source(source).unwrap());
        machine.start().unwrap();
        let outcome = machine.wait_timeout(LIMIT).unwrap();
        let Some(Outcome::Failed { part, reason }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(part, "memory");
        reason
    };
    let lost = Lost(file.try_clone().unwrap(), place(0x80_0000));
    assert_eq!(ends(Box::new(lost)), "guest memory at 0x800000 cannot be read: the wire is cut");
    let mut byte = [0];
    file.read_exact_at(&mut byte, place(0x60_1001)).unwrap();
    file.write_all_at(&[byte[0] ^ 1], place(0x60_1001)).unwrap();
    assert_eq!(ends(Box::new(file)), "it is damaged: guest memory at 0x600000 has a wrong checksum");
}
