use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;

use ossature_bus::state::SavedState;
use ossature_memory::{Backing, RamConfig, host_page_size};
use proptest::prelude::*;
use tempfile::TempDir;

use super::super::tests::{assembled, fields, file, parts};
use super::*;
use crate::machine::{BuildError, Machine, MachineBuilder};
use crate::scripted::{Script, Scripted};

const MIB: u64 = 1 << 20;
const RAM: u64 = 6 * MIB;
/// Where another slot is, of 3 MiB.
const MORE: u64 = 64 * MIB;

fn hypervisor() -> Scripted {
    Scripted::new([Script::new()])
}

fn machine() -> Machine {
    let machine = builder().build(&hypervisor()).unwrap();
    machine.ram().add_slot(MORE, 3 * MIB, &Backing::Anonymous).unwrap();
    machine.start().unwrap();
    machine
}

fn builder() -> MachineBuilder {
    Machine::builder("chain").memory(RamConfig::new(RAM))
}

fn write(machine: &Machine, addr: u64, bytes: &[u8]) {
    let mut dma = machine.ram().dma();
    dma.refresh();
    dma.write(GuestAddress(addr), bytes).unwrap();
}

fn memory(machine: &Machine) -> Vec<u8> {
    let (mut all, dma) = (Vec::new(), machine.ram().dma());
    for slot in machine.ram().slots() {
        let at = all.len();
        all.resize(at + slot.size as usize, 0);
        dma.read(GuestAddress(slot.guest_addr), &mut all[at..]).unwrap();
    }
    all
}

/// The memory of a machine that is restored, of which memory is mapped or copied.
fn restored(snapshot: Snapshot, backing: Backing) -> Vec<u8> {
    let builder = Machine::builder("restored").restore(snapshot);
    memory(&builder.memory(RamConfig::new(RAM + 3 * MIB).backing(backing)).build(&hypervisor()).unwrap())
}

/// A base and diffs of it in a folder, and what memory was at each.
struct Chain {
    folder: TempDir,
    paths: Vec<PathBuf>,
    memory: Vec<Vec<u8>>,
    _machine: Machine,
}

impl Chain {
    /// A base, and a diff after each of these turns.
    fn new(turns: &[&dyn Fn(&Machine)]) -> Self {
        let folder = TempDir::new().unwrap();
        let machine = machine();
        write(&machine, 0x1000, b"base");
        write(&machine, MORE + 2 * MIB, b"base");
        let mut paths = vec![folder.path().join("base.snap")];
        let mut checkpoint = machine.checkpoint_at(&paths[0]).unwrap();
        let mut all = vec![memory(&machine)];
        for (number, turn) in turns.iter().enumerate() {
            turn(&machine);
            paths.push(folder.path().join(format!("{number}.diff")));
            machine.snapshot_diff(&mut checkpoint, &paths[number + 1]).unwrap();
            all.push(memory(&machine));
        }
        Self { folder, paths, memory: all, _machine: machine }
    }

    fn open(&self) -> Snapshot {
        Snapshot::open_chain(&self.paths).unwrap()
    }

    fn bytes(&self, at: usize) -> Vec<u8> {
        fs::read(&self.paths[at]).unwrap()
    }
}

/// A base and two diffs.
fn three() -> Chain {
    Chain::new(&[&|machine| write(machine, 0x3000, b"first"), &|machine| {
        write(machine, 0x3800, b"second");
        write(machine, MORE, &[7; 9000]);
    }])
}

/// What somebody does to memory.
#[derive(Clone, Copy, Debug)]
enum Write {
    Bytes(u64, usize, u8),
    Discard(u64, u64),
    /// Every other page, so that runs are short.
    Stripes(u64, u8),
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let addr = || prop_oneof![0..RAM - 70_000, MORE..MORE + 3 * MIB - 70_000];
    let one = prop_oneof![
        4 => (addr(), 1..60_000_usize, any::<u8>()).prop_map(|(addr, len, byte)| Write::Bytes(addr, len, byte)),
        1 => (addr(), 1..8_u64).prop_map(|(addr, pages)| Write::Discard(addr, pages)),
        1 => (0..3_u64, any::<u8>()).prop_map(|(at, byte)| Write::Stripes(at * MIB, byte)),
    ];
    prop::collection::vec(one, 0..6)
}

fn carry_out(machine: &Machine, writes: &[Write]) {
    let page = host_page_size() as u64;
    for done in writes {
        match *done {
            Write::Bytes(addr, len, byte) => write(machine, addr, &vec![byte; len]),
            Write::Discard(addr, pages) => {
                let mut dma = machine.ram().dma();
                dma.refresh();
                dma.discard(GuestAddress(addr / page * page), pages * page).unwrap();
            }
            Write::Stripes(addr, byte) => {
                (0..100).for_each(|n| write(machine, addr + n * 2 * page, &[byte; 10]));
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4, ..ProptestConfig::default() })]

    /// Whatever is written between five diffs: the chain, what is merged of it, and a full snapshot are the same.
    #[test]
    fn a_chain_is_what_a_full_snapshot_is(turns in prop::collection::vec(writes(), 5)) {
        // Where a sync takes no time, if there is such a place.
        let folder = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let path = |name: &str| folder.path().join(name);
        let machine = machine();
        write(&machine, 0x1000, &[1; 200_000]);
        let mut paths = vec![path("base")];
        let mut checkpoint = machine.checkpoint_at(&paths[0]).unwrap();
        for (number, writes) in turns.iter().enumerate() {
            carry_out(&machine, writes);
            let paused = machine.pause().unwrap();
            paths.push(path(&format!("{number}")));
            paused.snapshot_diff(&mut checkpoint, paths.last().unwrap()).unwrap();
            let now = memory(&machine);
            let full = tempfile::tempfile().unwrap();
            paused.snapshot_to(&full).unwrap();
            paused.resume().unwrap();
            let chain = || Snapshot::open_chain(&paths).unwrap();
            chain().verify_memory().unwrap();
            chain().merge(path("merged")).unwrap();
            prop_assert!(restored(chain(), Backing::Anonymous) == now);
            prop_assert!(restored(chain(), Backing::Memfd) == now);
            let merged = Snapshot::open(path("merged")).unwrap();
            merged.verify_memory().unwrap();
            let full = Snapshot::from_file(full).unwrap();
            prop_assert_eq!(&merged.memory.chunks().collect::<Vec<_>>(), &full.memory.chunks().collect::<Vec<_>>());
            prop_assert!(restored(merged, Backing::Anonymous) == now);
            // The machine itself goes back to each of them.
            write(&machine, 0x8000, &[9; 50_000]);
            machine.reset_to(&mut checkpoint).unwrap();
            prop_assert!(memory(&machine) == now);
        }
    }
}

#[test]
fn a_diff_has_the_pages_that_were_written_and_no_more() {
    let machine = machine();
    let folder = TempDir::new().unwrap();
    let mut checkpoint = machine.checkpoint_at(folder.path().join("base")).unwrap();
    // Data, pages that become zero, and a page that is written with what it had.
    let page = host_page_size() as u64;
    let pages = 600;
    (0..pages).for_each(|n| write(&machine, n * 2 * page, &[7; 64]));
    let path = folder.path().join("diff");
    machine.snapshot_diff(&mut checkpoint, &path).unwrap();
    let diff = Snapshot::open(&path).unwrap();
    assert_eq!(diff.memory_in_file(), pages * page);
    // What the file takes of the disk: holes take nothing.
    let (taken, needed) = (fs::metadata(&path).unwrap().blocks() * 512, pages * page);
    let (state, dirty) = (diff.header.state.next_multiple_of(page) + page, needed);
    assert!(taken <= dirty * 102 / 100 + state, "{taken} bytes for {dirty}");
    assert!(diff.header.state < dirty / 50, "the state is {} bytes", diff.header.state);
    // Nothing was written since.
    machine.snapshot_diff(&mut checkpoint, folder.path().join("none")).unwrap();
    assert_eq!(Snapshot::open(folder.path().join("none")).unwrap().memory_in_file(), 0);
}

#[test]
fn a_wrong_missing_or_changed_base_is_refused_by_name() {
    let (chain, other) = (three(), three());
    let open = |at: usize| Snapshot::open(&chain.paths[at]).unwrap();
    let [base, first, second] = [0, 1, 2].map(|at| open(at).id().unwrap());
    assert_eq!((open(0).base(), open(1).base(), open(2).base()), (None, Some(base), Some(first)));
    // The one that does not go on those before it, and why.
    let of = |paths: &[&PathBuf]| match Snapshot::open_chain(paths).unwrap_err() {
        SnapshotError::Opened { path, source } => (path, *source),
        error => panic!("{error}"),
    };
    let [a, b, c] = [0, 1, 2].map(|at| &chain.paths[at]);
    let (path, error) = of(&[a, c]);
    assert!(
        matches!(error, SnapshotError::OtherBase { expected, found } if expected == first && found == Some(base))
    );
    assert!(error.to_string().contains(&first.to_string()) && path == *c, "{error}");
    assert!(matches!(of(&[a, c, b]), (path, SnapshotError::OtherBase { .. }) if path == *c));
    assert!(matches!(of(&[&other.paths[0], b]), (path, SnapshotError::OtherBase { .. }) if path == *b));
    assert!(matches!(of(&[b, c]), (path, SnapshotError::NeedsBase { base: of }) if of == base && path == *b));
    assert!(matches!(of(&[b]), (path, SnapshotError::NeedsBase { base: of }) if of == base && path == *b));
    assert!(matches!(of(&[a, a]), (path, SnapshotError::NotADiff) if path == *a));
    assert!(matches!(Snapshot::open_chain::<PathBuf>([]), Err(SnapshotError::EmptyChain)));
    let (path, error) = of(&[a, b, c, c]);
    assert!(matches!(error, SnapshotError::OtherBase { found, .. } if found == Some(second)));
    assert_eq!(path, *c);
    // A diff alone is listed, and not restored or merged.
    assert!(matches!(
        open(1).merge(chain.folder.path().join("merged")),
        Err(SnapshotError::NeedsBase { .. })
    ));
    let errors = Machine::builder("alone").restore(open(1)).build(&hypervisor()).unwrap_err();
    assert!(matches!(errors.errors(), [BuildError::Snapshot(SnapshotError::NeedsBase { .. })]), "{errors}");
    // A base whose state is another one, with all its checksums right.
    let (mut sections, memory) = parts(&chain.bytes(0));
    let vm = sections.get_mut("vm").unwrap();
    *vm = SavedState::new(vm.kind.clone(), vm.version, [&vm.payload[..], &[0; 6]].concat());
    let changed = Snapshot::from_file(file(&assembled(&sections, &memory))).unwrap();
    assert!(matches!(open(1).on(changed), Err(SnapshotError::ChangedBase { base: of }) if of == base));
}

/// The file is of x86_64.
#[test]
#[cfg(target_arch = "x86_64")]
fn a_file_of_version_1_is_no_base_but_a_checkpoint() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/v1-scripted.snap");
    let snapshot = Snapshot::open(path).unwrap();
    assert_eq!((snapshot.id(), snapshot.base()), (None, None));
    let (first, second) = (Script::new(), Script::new());
    let builder = Machine::builder("old")
        .device(ossature_legacy::Rtc::with_clock("rtc", || std::time::UNIX_EPOCH))
        .device(ossature_legacy::I8042::new("i8042"));
    let built = builder.restore(snapshot).build_with_checkpoint(&Scripted::new([first, second]));
    let (machine, mut checkpoint) = built.unwrap();
    machine.start().unwrap();
    let before = memory(&machine);
    write(&machine, 0x3000, b"x");
    machine.reset_to(&mut checkpoint).unwrap();
    assert!(memory(&machine) == before);
    let folder = TempDir::new().unwrap();
    let refused = machine.snapshot_diff(&mut checkpoint, folder.path().join("diff"));
    assert!(matches!(refused, Err(SnapshotError::NoId)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    // Merged, it has one.
    checkpoint.snapshot().merge(folder.path().join("new")).unwrap();
    assert!(Snapshot::open(folder.path().join("new")).unwrap().id().is_some());
}

#[test]
fn what_is_merged_takes_the_place_of_its_parts() {
    let chain = three();
    let folder = chain.folder.path();
    let merged = |paths: &[PathBuf], name: &str| {
        let all = Snapshot::open_chain(paths).unwrap();
        all.merge(folder.join(name)).unwrap();
        Snapshot::open(folder.join(name)).unwrap()
    };
    let two = merged(&chain.paths[..2], "two");
    let second = Snapshot::open(&chain.paths[2]).unwrap();
    assert_eq!((two.id(), two.base()), (second.base(), None));
    assert!(restored(second.on(two).unwrap(), Backing::Anonymous) == chain.memory[2]);
    // In place of its own base.
    merged(&chain.paths, "base.snap");
    assert!(restored(Snapshot::open(&chain.paths[0]).unwrap(), Backing::Anonymous) == chain.memory[2]);
    let names = fs::read_dir(folder).unwrap().count();
    assert_eq!(names, 4, "nothing is left beside");
}

#[test]
fn a_diff_that_cannot_be_written_is_in_the_next_one() {
    let machine = machine();
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    let mut checkpoint = machine.checkpoint_at(path("base")).unwrap();
    write(&machine, 0x5000, b"kept");
    fs::write(path("taken"), b"something else").unwrap();
    let error = machine.snapshot_diff(&mut checkpoint, path("taken")).unwrap_err();
    assert!(matches!(error, SnapshotError::Taken { .. }), "{error}");
    let slot = machine.ram().add_slot(2 * MORE, MIB, &Backing::Anonymous).unwrap();
    let error = machine.snapshot_diff(&mut checkpoint, path("diff")).unwrap_err();
    assert!(matches!(error, SnapshotError::OtherSlots), "{error}");
    machine.ram().remove_slot(slot).unwrap();
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    // Pages that were taken out of the log, and whose file then was not there to stay.
    let pages = crate::machine::checkpoint::collected(&mut checkpoint);
    assert!(pages.iter().any(|range| range.contains(&0x5000)), "{pages:x?}");
    write(&machine, 0x9000, b"too");
    machine.snapshot_diff(&mut checkpoint, path("diff")).unwrap();
    let chain = Snapshot::open_chain(["base", "diff"].map(path)).unwrap();
    assert_eq!(chain.memory_in_file(), 2 * host_page_size() as u64);
    assert!(restored(chain, Backing::Anonymous) == memory(&machine));
}

/// What becomes of a diff that has these bytes.
fn outcome(bytes: &[u8], base: &Snapshot) -> Result<Vec<u8>, String> {
    let diff = Snapshot::from_file(file(bytes)).map_err(|error| error.to_string())?;
    let chain = diff.on(base.duplicate().unwrap()).map_err(|error| error.to_string())?;
    chain.verify_memory().map_err(|error| error.to_string())?;
    let config = RamConfig::new(RAM + 3 * MIB);
    let built = Machine::builder("changed").memory(config).restore(chain).build(&hypervisor());
    Ok(memory(&built.map_err(|error| error.to_string())?))
}

#[test]
fn d2_every_truncation_and_every_flipped_bit_of_a_diff_is_refused() {
    let chain = three();
    let (bytes, base) = (chain.bytes(1), Snapshot::open(&chain.paths[0]).unwrap());
    let state = Snapshot::open(&chain.paths[1]).unwrap().header;
    let behind = super::super::header::LEN + state.state as usize;
    assert!(outcome(&bytes, &base).unwrap() == chain.memory[1]);
    for len in (0..behind).chain((behind..bytes.len()).step_by(500_009)).chain([bytes.len() - 1]) {
        outcome(&bytes[..len], &base).unwrap_err();
    }
    let mut changed = bytes.clone();
    for at in 0..behind {
        for bit in [1, 0x80] {
            changed[at] ^= bit;
            outcome(&changed[..behind.max(state.end as usize)], &base).unwrap_err();
            changed[at] ^= bit;
        }
    }
    // A page that it has; one that it has not is never looked at.
    let at = |addr: u64| (state.memory + addr) as usize;
    changed[at(0x3001)] ^= 1;
    assert!(outcome(&changed, &base).unwrap_err().contains("memory at 0x0 has a wrong checksum"));
    changed[at(0x3001)] ^= 1;
    changed[at(0x8000)] ^= 1;
    assert!(outcome(&changed, &base).unwrap() == chain.memory[1]);
}

#[test]
fn d2_each_field_of_a_diff_that_is_changed_is_refused_or_harmless() {
    let chain = three();
    let base = Snapshot::open(&chain.paths[0]).unwrap();
    let (sections, memory) = parts(&chain.bytes(1));
    let mut refused = 0;
    for id in [identity::ID, super::super::memory::ID] {
        let section = &sections[id];
        let mut places = Vec::new();
        fields(&section.payload, 0, &mut places);
        for (at, len) in places {
            let mut changes: Vec<Vec<u8>> = Vec::new();
            let mut change = |f: &dyn Fn(&mut [u8])| {
                let mut payload = section.payload.to_vec();
                f(&mut payload);
                changes.push(payload);
            };
            for fill in [0, 1, 0x7f, 0x80, 0xff] {
                change(&|payload| payload[at + 6..at + 6 + len].fill(fill));
            }
            for length in [len.wrapping_sub(1), len + 1, 0, u32::MAX as usize] {
                change(&|payload| payload[at + 2..at + 6].copy_from_slice(&(length as u32).to_le_bytes()));
            }
            for payload in changes.into_iter().filter(|payload| payload[..] != section.payload[..]) {
                let mut changed = sections.clone();
                changed
                    .insert(id.to_owned(), SavedState::new(section.kind.clone(), section.version, payload));
                match outcome(&assembled(&changed, &memory), &base) {
                    Ok(now) => assert!(now == chain.memory[1], "another id is all that is possible: {at}"),
                    Err(error) => {
                        assert!(!error.is_empty());
                        refused += 1;
                    }
                }
            }
        }
        for version in [0, 1, 2, 3, u16::MAX].into_iter().filter(|version| *version != section.version) {
            let mut changed = sections.clone();
            changed.get_mut(id).unwrap().version = version;
            outcome(&assembled(&changed, &memory), &base).unwrap_err();
        }
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn memory_is_mapped_in_few_pieces_and_what_is_scattered_is_copied() {
    let layer = |dirty: &[std::ops::Range<u64>]| {
        let ram = Ram::new(&RamConfig::new(2048 * MIB)).unwrap();
        let memory = Arc::new(MemoryTable::of_pages(&ram, dirty).unwrap());
        Layer { file: Arc::new(tempfile::tempfile().unwrap()), start: 65536, memory }
    };
    let one = |dirty: std::ops::Range<u64>| layer(std::slice::from_ref(&dirty));
    let planned = |layers: &[Layer]| {
        let visible = visible(layers);
        let (mapped, pieces) = plan(layers, &visible, 4096);
        let copied = visible.iter().filter(|part| !part.can_be_mapped(mapped));
        let copied = copied.map(|part| part.pages.count()).sum::<usize>();
        (pieces.iter().map(Vec::len).collect::<Vec<_>>(), copied)
    };
    // All of it is one piece.
    assert_eq!(planned(&[one(0..2048 * MIB)]), (vec![1], 0));
    // What a later one has is not taken from an earlier one.
    let later = one(MIB..64 * MIB);
    assert_eq!(planned(&[later, one(0..128 * MIB)]), (vec![1, 2], 0));
    // Single pages are copied.
    let page = 4096;
    let single: Vec<_> = (0..1000).map(|n| n * 16 * page..n * 16 * page + page).collect();
    assert_eq!(planned(&[layer(&single)]), (vec![0], 1000));
    // Long runs, of which there are too many: the longest are mapped.
    let runs: Vec<_> =
        (0..1024).map(|n| n * 2 * MIB..n * 2 * MIB + if n % 8 == 0 { MIB } else { 64 * 1024 }).collect();
    assert_eq!(planned(&[layer(&runs)]), (vec![128], 896 * 16));
    let many: Vec<_> = (0..1024).map(|n| n * 2 * MIB..n * 2 * MIB + MIB).collect();
    assert_eq!(planned(&[layer(&many)]), (vec![0], 1024 * 256));
}

#[test]
fn diffs_of_hosts_with_smaller_pages_are_mapped_where_their_pages_are_whole_ones() {
    let ram = Ram::new(&RamConfig::new(8 * MIB)).unwrap();
    let kib = 1024;
    // Whole pages of 64 KiB in the first chunk, of 16 KiB in the second, of 4 KiB in the third.
    let dirty =
        [64 * kib..192 * kib, 2 * MIB + 16 * kib..2 * MIB + 96 * kib, 4 * MIB + 4 * kib..4 * MIB + 68 * kib];
    let memory = Arc::new(MemoryTable::of_pages(&ram, &dirty).unwrap());
    let layers = [Layer { file: Arc::new(tempfile::tempfile().unwrap()), start: 65536, memory }];
    let visible = visible(&layers);
    for (page, mapped) in [(4 * kib, 3), (16 * kib, 2), (64 * kib, 1)] {
        let (mappable, pieces) = plan(&layers, &visible, page as usize);
        assert_eq!(pieces[0].len(), mapped, "pages of {page}");
        assert_eq!(visible.iter().filter(|part| part.can_be_mapped(mappable)).count(), mapped);
        assert!(pieces[0].iter().all(|piece| (piece.addr.0 | piece.offset | piece.len) % page == 0));
    }
}

#[test]
fn what_a_machine_writes_after_it_was_restored_stays_out_of_the_files() {
    let chain = three();
    let builder = Machine::builder("again").restore(chain.open());
    let (machine, mut checkpoint) = builder.build_with_checkpoint(&hypervisor()).unwrap();
    machine.start().unwrap();
    for addr in [0x1000, 0x3000, 0x3fff, MORE, MORE + 8192, MORE + 2 * MIB, 5 * MIB] {
        write(&machine, addr, &[0x55; 3]);
    }
    let folder = TempDir::new().unwrap();
    machine.snapshot_diff(&mut checkpoint, folder.path().join("next")).unwrap();
    let now = memory(&machine);
    assert!(restored(chain.open(), Backing::Anonymous) == chain.memory[2]);
    let next = Snapshot::open(folder.path().join("next")).unwrap().on(chain.open()).unwrap();
    assert!(restored(next, Backing::Anonymous) == now);
    // Damaged pages are refused where they are copied.
    let file = fs::File::options().write(true).open(&chain.paths[1]).unwrap();
    file.write_all_at(b"?", chain.open().header.memory + 0x3001).unwrap();
    assert!(matches!(chain.open().verify_memory(), Err(SnapshotError::MemoryChecksum { addr: 0 })));
    let merged = chain.open().merge(chain.folder.path().join("merged"));
    assert!(matches!(merged, Err(SnapshotError::MemoryChecksum { addr: 0 })));
}
